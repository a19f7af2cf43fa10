"""Selection: which elements of a layer go, once it is known how many."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit.graph.rows import from_rows, rows_of
from prunekit.limits import LARGE, STEPS, WHOLE
from prunekit.masks import lowest, lowest_per_row
from prunekit.obs.admm import ITERATIONS, admm_support
from prunekit.obs.sparsegpt import BLOCK, Choose, choose_count, choose_pattern, left_to_right
from prunekit.parts.base import Part
from prunekit.parts.context import StepContext
from prunekit.statistics import ConnectionCorrelation, LayerHessian, Statistic
from prunekit.statistics.hessians import damped_groups
from prunekit.stratified import stratified_sample


class Selection(Part):
    """How the elements that go are chosen in a layer when the allocation has said how many.

    Attributes:
        needs: the statistics that the selection is computed from.
    """

    needs: ClassVar[tuple[Statistic, ...]] = ()

    @abstractmethod
    def __call__(self, context: StepContext, name: str, count: int) -> Tensor:
        """Which elements of a layer are kept.

        Args:
            context: of the step; what is removed already scores minus infinity.
            name: of the parameter, or of the group of units.
            count: how many are removed in the end, those included that are already.

        Returns:
            A mask (True = kept) of the shape of the scores, with exactly `count` False.
        """


class Lowest(Selection):
    """The lowest scores that the shape allows."""

    name = "lowest"

    def __call__(self, context: StepContext, name: str, count: int) -> Tensor:
        """As the shape selects them; ties by position."""
        return context.granularity.select(context.scores[name], count)


class CorrelatedHalves(Selection):
    """A random draw for each neuron, most of it from the more strongly correlated half of its connections.

    Connections are split by the sign of r, the correlation of the activations at their two ends, and sorted
    by |r|; of K that are still there, at the density S that is to be left of them, strong S K stay of the
    stronger half and (1 - strong) S K of the weaker one, drawn at the same odds. Where a half is too small
    for its share, the other one gives the rest, so that the number of weights is exact; where shares are not
    whole numbers, they are met over the layer. A convolution's weights have a mean of |r| and thus one sign.
    As published it goes with `order: backward` and fine-tuning.

    Attributes:
        strong: the share of the stronger half (λ); 1 keeps from it alone.
        within: which connections are sorted and cut in half together: those of an output (`row`: a neuron, a
            filter), or those of the whole `layer`.
    """

    name = "correlated_halves"
    paper = "Sun, Wang, Tang 2016, CVPR, arXiv 1512.01891"
    needs = (ConnectionCorrelation(),)
    works_on = ("weights",)
    strong: float = Field(default=0.75, ge=0, le=1)
    within: Literal["row", "layer"] = "row"

    def __call__(self, context: StepContext, name: str, count: int) -> Tensor:
        """Drawn from the generator; weights that are zero already go before any other."""
        layer = context.layer(name)
        there = context.scores[name] != -torch.inf
        kept = there.numel() - count
        if kept >= int(there.sum()):
            return context.granularity.select(context.scores[name], count)
        values = context.statistics[ConnectionCorrelation()][name]
        values, rows = rows_of(values, layer), rows_of(there, layer)
        width = rows.shape[2] if self.within == "row" else rows.numel()
        drawn = stratified_sample(
            values.reshape(-1, width), rows.reshape(-1, width), kept, self.strong, context.generator
        )
        return from_rows(drawn.view(rows.shape), layer)


class LayerSelection(Selection):
    """A selection of weights that looks at the second moments of the layer's inputs instead of the scores.

    Attributes:
        damp: added to the Hessian's diagonal, relative to its mean over the live inputs.
    """

    works_on = ("weights", "patterns")
    needs = (LayerHessian(),)

    damp: float = Field(default=0.01, ge=0, le=LARGE)

    def __call__(self, context: StepContext, name: str, count: int) -> Tensor:
        """Each group of a convolution by itself, with its share of the count."""
        layer = context.layer(name)
        pattern = context.pattern
        rows = rows_of(context.weights[name].detach(), layer).double()
        gone = rows_of(context.scores[name] == -torch.inf, layer)
        matrices = damped_groups(name, context.statistics[LayerHessian()][name], self.damp)
        # the columns of one group of a pattern are neighbours after this: channels at a kernel's position
        positions = context.weights[name][0, 0].numel() if pattern else 1
        order = torch.arange(rows.shape[2], device=rows.device).view(-1, positions).T.flatten()
        groups = len(rows)
        masks = []
        left = count
        for number, (matrix, group, off) in enumerate(zip(matrices, rows, gone, strict=True)):
            behind = int(gone[number + 1 :].sum())
            count = min(max(left // (groups - number), int(off.sum())), left - behind, off.numel())
            left -= count
            mask = torch.empty_like(off)
            mask[:, order] = self.select(
                matrix[order][:, order], group[:, order], off[:, order], count, pattern
            )
            masks.append(mask)
        return from_rows(torch.stack(masks), layer)

    @abstractmethod
    def select(
        self, matrix: Tensor, rows: Tensor, gone: Tensor, count: int, pattern: tuple[int, int] | None
    ) -> Tensor:
        """The mask (rows, columns) of one group; `count` weights go, or the same of every m columns."""


class SparseGPT(LayerSelection):
    """Columns from left to right, masks chosen in blocks of 128 of them with the weights as they are then.

    Goes with the repair `sparsegpt`, which repeats the same pass for its weights; any other repair works too.
    """

    name = "sparsegpt"
    paper = "Frantar, Alistarh 2023, arXiv 2301.00774"
    block: int = Field(default=BLOCK, ge=1, le=WHOLE)

    def select(
        self, matrix: Tensor, rows: Tensor, gone: Tensor, count: int, pattern: tuple[int, int] | None
    ) -> Tensor:
        """The mask of the published algorithm."""
        choose: Choose
        if pattern is None:
            choose, together, block = choose_count(gone, count, self.block), None, self.block
        else:
            together = pattern[1]
            choose = choose_pattern(gone, count * together // rows.numel())
            block = -(-self.block // together) * together
        return left_to_right(matrix, rows, choose, block=block, together=together)[1]


class ADMM(LayerSelection):
    """A search that moves support and weights together (ALPS); goes with `masked_least_squares`."""

    name = "admm"
    paper = "Meng et al. 2024 (ALPS), arXiv 2406.07831"
    iterations: int = Field(default=ITERATIONS, ge=1, le=STEPS)

    def select(
        self, matrix: Tensor, rows: Tensor, gone: Tensor, count: int, pattern: tuple[int, int] | None
    ) -> Tensor:
        """The support that the search ends with."""

        def keep(importance: Tensor) -> Tensor:
            importance = importance.masked_fill(gone, -torch.inf)
            if pattern is None:
                return ~lowest(importance, count)
            groups = importance.reshape(-1, pattern[1])
            return ~lowest_per_row(groups, count // len(groups)).view(importance.shape)

        return admm_support(matrix, rows, keep, iterations=self.iterations)
