"""Selection: which elements of a layer go, once it is known how many."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.ranking import lowest, lowest_per_row
from prunekit.second_order.left_to_right import BLOCK, Choose, choose_count, choose_pattern, left_to_right
from prunekit.second_order.support import ITERATIONS, admm_support
from prunekit.settings import Part
from prunekit.shapes import Shape
from prunekit.statistics import Found, LayerHessian, Statistic
from prunekit.statistics.hessians import damped_groups
from prunekit.structure.rows import from_rows, rows_of


@dataclass(frozen=True)
class Choice:
    """What a selection may look at, for one layer.

    Attributes:
        name: of the parameter, or of the group of units.
        scores: what the score gave; minus infinity for what is removed already.
        count: how many are removed in the end, those included that are already.
        shape: what goes together.
        weight: the parameter; None where units are counted.
        layer: its module; None where units are counted.
        found: the statistics of the step.
    """

    name: str
    scores: Tensor
    count: int
    shape: Shape
    weight: Tensor | None
    layer: nn.Module | None
    found: Found


class Selection(Part):
    """How the elements that go are chosen in a layer when the allocation has said how many."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The statistics that the selection is computed from; none by default."""
        return ()

    @abstractmethod
    def __call__(self, choice: Choice) -> Tensor:
        """A mask (True = kept) of the shape of the scores, with exactly `count` False."""


class Lowest(Selection):
    """The lowest scores that the shape allows."""

    name: ClassVar[str] = "lowest"

    def __call__(self, choice: Choice) -> Tensor:
        """As the shape selects them; ties by position."""
        return choice.shape.select(choice.scores, choice.count)


class LayerSelection(Selection):
    """A selection of weights that looks at the second moments of the layer's inputs instead of the scores.

    Attributes:
        damp: added to the Hessian's diagonal, relative to its mean over the live inputs.
    """

    damp: float = Field(default=0.01, ge=0)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Second moments of the layers' inputs, about the mean where there is a bias."""
        return (LayerHessian(),)

    def __call__(self, choice: Choice) -> Tensor:
        """Each group of a convolution by itself, with its share of the count."""
        assert choice.weight is not None
        assert choice.layer is not None
        pattern = choice.shape.pattern
        rows = rows_of(choice.weight.detach(), choice.layer).double()
        gone = rows_of(choice.scores == -torch.inf, choice.layer)
        matrices = damped_groups(choice.name, choice.found[LayerHessian()][choice.name], self.damp)
        # the columns of one group of a pattern are neighbours after this: channels at a kernel's position
        positions = choice.weight[0, 0].numel() if pattern else 1
        order = torch.arange(rows.shape[2], device=rows.device).view(-1, positions).T.flatten()
        groups = len(rows)
        masks = []
        left = choice.count
        for number, (matrix, group, off) in enumerate(zip(matrices, rows, gone, strict=True)):
            behind = int(gone[number + 1 :].sum())
            count = min(max(left // (groups - number), int(off.sum())), left - behind, off.numel())
            left -= count
            mask = torch.empty_like(off)
            mask[:, order] = self.select(
                matrix[order][:, order], group[:, order], off[:, order], count, pattern
            )
            masks.append(mask)
        return from_rows(torch.stack(masks), choice.layer)

    @abstractmethod
    def select(
        self, matrix: Tensor, rows: Tensor, gone: Tensor, count: int, pattern: tuple[int, int] | None
    ) -> Tensor:
        """The mask (rows, columns) of one group; `count` weights go, or the same of every m columns."""


class SparseGPT(LayerSelection):
    """Columns from left to right, masks chosen in blocks of 128 of them with the weights as they are then.

    Goes with the repair `sparsegpt`, which repeats the same pass for its weights; any other repair works too.
    """

    name: ClassVar[str] = "sparsegpt"
    paper: ClassVar[str] = "Frantar, Alistarh 2023, arXiv 2301.00774"
    block: int = Field(default=BLOCK, ge=1)

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

    name: ClassVar[str] = "admm"
    paper: ClassVar[str] = "Meng et al. 2024 (ALPS), arXiv 2406.07831"
    iterations: int = Field(default=ITERATIONS, ge=1)

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
