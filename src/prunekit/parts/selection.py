"""Selection: which elements of a layer go, once it is known how many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import floor
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit.graph.rows import from_rows, rows_of
from prunekit.masks import lowest, lowest_per_row
from prunekit.obs import inverse_factor
from prunekit.obs.layer_gates import ITERATIONS as GATED_ITERATIONS
from prunekit.obs.layer_gates import fitted_gates
from prunekit.obs.mask_search import (
    BLOCK,
    ITERATIONS,
    Choose,
    admm_support,
    choose_count,
    choose_pattern,
    left_to_right,
)
from prunekit.obs.rates import Rates
from prunekit.parts.base import Part
from prunekit.parts.context import StepContext
from prunekit.parts.input_matrices import damped_inputs, factor_of, leave_swept
from prunekit.settings import LARGE, STEPS, WHOLE
from prunekit.statistics import ConnectionCorrelation, LayerHessian

__all__ = ["ADMM", "CorrelatedHalves", "LayerL0", "LayerSelection", "Lowest", "Selection", "SparseGPT"]


class Selection(Part):
    """How the elements that go are chosen in a layer when the allocation has said how many."""

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
    """The lowest scores that the granularity allows."""

    name = "lowest"

    def __call__(self, context: StepContext, name: str, count: int) -> Tensor:
        """As the granularity selects them; ties by position."""
        return context.granularity.select(context.scores[name], count)


class CorrelatedHalves(Selection):
    """A random draw for each neuron, most of it from the more strongly correlated half of its connections.

    Connections are split by the sign of r, the correlation of the activations at their two ends, and sorted
    by |r|; of K that are still there, at the density S that is to be left of them, strong S K stay of the
    stronger half and (1 - strong) S K of the weaker one, drawn at the same odds. Where a half is too small
    for its share, the other one gives the rest, so that the number of weights is exact; where shares are not
    whole numbers, they are met over the layer. Connections from inputs that never change, which correlate
    with nothing, go before all others. A convolution's weights have a mean of |r| and thus one sign,
    unless each serves a single connection, as in a locally connected layer (see `ConnectionCorrelation`).
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
        # r of an input that never changes is 0 for every output
        changing = rows & (values != 0).any(1, keepdim=True)
        width = rows.shape[2] if self.within == "row" else rows.numel()

        def draw(available: Tensor, count: int) -> Tensor:
            flat = values.reshape(-1, width), available.reshape(-1, width)
            return stratified_sample(*flat, count, self.strong, context.generator).view(rows.shape)

        most = int(changing.sum())
        drawn = draw(changing, kept) if kept <= most else changing | draw(rows & ~changing, kept - most)
        return from_rows(drawn, layer)


@dataclass(frozen=True, eq=False)
class _Group:
    """The weights of one group of a layer, of which some go.

    Attributes:
        matrix: (columns, columns) second moments of the inputs, damped.
        rows: (rows, columns) weights, float64.
        gone: (rows, columns) booleans, True for those that are removed already.
        count: how many go in all.
        pattern: (n, m) where n of every m consecutive columns stay; None for no pattern.
        factor: gives the matrix's `inverse_factor`.
        leave: takes weights that were found together with a mask, and that mask, for the repair.
    """

    matrix: Tensor
    rows: Tensor
    gone: Tensor
    count: int
    pattern: tuple[int, int] | None
    factor: Callable[[], Tensor]
    leave: Callable[[Tensor, Tensor], None]

    def keep(self, importance: Tensor) -> Tensor:
        """The most important ones, as many as are to stay."""
        importance = importance.masked_fill(self.gone, -torch.inf)
        if self.pattern is None:
            return ~lowest(importance, self.count)
        groups = importance.reshape(-1, self.pattern[1])
        return ~lowest_per_row(groups, self.count // len(groups)).view(importance.shape)


def _forget(weights: Tensor, mask: Tensor) -> None:
    """Leave nothing: the repair sweeps the columns in another order."""


class LayerSelection(Selection):
    """A selection of weights that looks at the second moments of the layer's inputs instead of the scores.

    Attributes:
        damp: added to the Hessian's diagonal, relative to its mean over the live inputs.
    """

    works_on = ("weights", "patterns")
    needs = (LayerHessian(),)
    by_owner = True

    damp: float = Field(default=0.01, ge=0, le=LARGE)

    def __call__(self, context: StepContext, name: str, count: int) -> Tensor:
        """Each group of a convolution by itself, with its share of the count."""
        layer = context.layer(name)
        pattern = context.pattern
        rows = rows_of(context.weights[name].detach(), layer).double()
        gone = rows_of(context.scores[name] == -torch.inf, layer)
        matrices = damped_inputs(context, name, self.damp)
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
            if positions == 1:
                factor = partial(factor_of, context, matrix)
                leave = partial(leave_swept, context, name, matrix)
                mask = self.select(_Group(matrix, group, off, count, pattern, factor, leave))
            else:
                matrix = matrix[order][:, order]
                factor = partial(inverse_factor, matrix)
                own = _Group(matrix, group[:, order], off[:, order], count, pattern, factor, _forget)
                mask[:, order] = self.select(own)
            masks.append(mask)
        return from_rows(torch.stack(masks), layer)

    @abstractmethod
    def select(self, group: _Group) -> Tensor:
        """The mask (rows, columns) of one group; `count` weights go, or the same of every m columns."""


class SparseGPT(LayerSelection):
    """Columns from left to right, masks chosen in blocks of 128 of them with the weights as they are then.

    Goes with the repair `sparsegpt`, which takes the weights of the same pass; any other repair works too.
    """

    name = "sparsegpt"
    paper = "Frantar, Alistarh 2023, arXiv 2301.00774"
    block: int = Field(default=BLOCK, ge=1, le=WHOLE)

    def solving_seconds(self, rows: int, columns: int, sparsity: float, rates: Rates) -> float:
        """Two factorisations, an inverse by matrix products, and a pass over the columns."""
        cube = columns**3 * 2 / 3
        return cube / rates.factorised + (cube + rows * columns**2) / rates.double

    def select(self, group: _Group) -> Tensor:
        """The mask of the published algorithm."""
        choose: Choose
        if group.pattern is None:
            choose, together, block = choose_count(group.gone, group.count, self.block), None, self.block
        else:
            together = group.pattern[1]
            choose = choose_pattern(group.gone, group.count * together // group.rows.numel())
            block = -(-self.block // together) * together
        weights, mask = left_to_right(
            group.matrix, group.rows, choose, block=block, together=together, upper=group.factor()
        )
        group.leave(weights, mask)
        return mask


class ADMM(LayerSelection):
    """A search that moves support and weights together (ALPS); goes with `masked_least_squares`."""

    name = "admm"
    paper = "Meng et al. 2024 (ALPS), arXiv 2406.07831"
    iterations: int = Field(default=ITERATIONS, ge=1, le=STEPS)

    def working_bytes(self, rows: int, columns: int) -> int:
        """Eigenvectors with what they are worked out in, or these alone and ten times the weights."""
        weights = rows * columns
        return 8 * max(6 * columns**2 + 3 * weights, 2 * columns**2 + 10 * weights)

    def select(self, group: _Group) -> Tensor:
        """The support that the search ends with."""
        return admm_support(group.matrix, group.rows, group.keep, iterations=self.iterations)


class LayerL0(LayerSelection):
    """L0 gates fitted to the layer's outputs in expectation; goes with `masked_least_squares`.

    Each layer is fitted on its own reconstruction, from the second moments of its inputs: no labels, and no
    derivatives of the network. The weights that are largest in the mean behind their gates, in units of
    their inputs, stay.

    Attributes:
        iterations: the alternations between gates and weights.
    """

    name = "layer_l0"
    paper = "objective: Louizos, Welling, Kingma 2018, arXiv 1712.01312; layer by layer: prunekit's own"
    iterations: int = Field(default=GATED_ITERATIONS, ge=1, le=STEPS)

    def select(self, group: _Group) -> Tensor:
        """What is largest behind its gates."""
        density = 1 - group.count / group.rows.numel()
        return group.keep(
            fitted_gates(group.matrix, group.rows, group.gone, density, iterations=self.iterations)[1]
        )


_GRAINS = 2**20
"""How finely the starting point of the running sums is drawn."""


def stratified_sample(
    values: Tensor, available: Tensor, kept: int, strong: float, generator: torch.Generator
) -> Tensor:
    """Which connections stay: a share of the strong half of each kind, the rest of the weak half.

    A kind is the available connections of one row whose values have one sign; zero counts as positive. Of K
    of them, sorted by |value|, the first half (the larger one, if K is odd) is strong. With the density
    S = kept / all that are available, strong S K are drawn from it and (1 - strong) S K from the weak half,
    each at the same odds. What a half cannot give the other one does.

    Where these numbers are not whole, each row gets a whole number next to its S K, its strong halves one
    next to their share of that, and of each of these the positive kind one next to its own; always so that
    the running sums over the rows are next to those of the exact numbers. No row with S K >= 1 is thus left
    without a connection. Where the sums start is drawn, too.

    Args:
        values: (rows, columns) correlations.
        available: (rows, columns) booleans, True for connections that can be kept.
        kept: how many stay, at most as many as are available.
        strong: the share that the strong halves are to have, in [0, 1].
        generator: on the CPU; the source of the draw.

    Returns:
        (rows, columns) booleans, exactly `kept` of them True; on the device of `values`.
    """
    device, rows = values.device, len(values)
    values, available = values.cpu().double(), available.cpu()
    kind = 2 * torch.arange(rows).unsqueeze(1) + (values < 0)
    kind = kind[available]
    sizes = torch.bincount(kind, minlength=2 * rows)
    rank = _ranks(kind, values.abs()[available].neg(), sizes)
    box = 2 * kind + (rank >= (sizes[kind] + 1) // 2)
    counts = torch.tensor(_counts(sizes.view(-1, 2).tolist(), kept, strong, generator)).flatten()
    chances = torch.rand(len(box), generator=generator, dtype=torch.float64)
    drawn = _ranks(box, chances, torch.bincount(box, minlength=4 * rows)) < counts[box]
    found = torch.zeros_like(available)
    found[available] = drawn
    return found.to(device)


def _ranks(group: Tensor, values: Tensor, sizes: Tensor) -> Tensor:
    """The place of each value among those of its group, from 0; ties by position."""
    order = values.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    places = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]
    return torch.empty_like(places).scatter_(0, order, places)


def _counts(
    sizes: list[list[int]], kept: int, strong: float, generator: torch.Generator
) -> list[list[tuple[int, int]]]:
    """How many stay of the (strong, weak) half of the positive and the negative kind of each row."""
    totals = [sum(kinds) for kinds in sizes]
    density = Fraction(kept, max(sum(totals), 1))
    share = Fraction(str(strong))  # as it was written: 0.7 is seven tenths
    of_rows = _whole([density * total for total in totals], generator)
    limits = [[((size + 1) // 2, size // 2) for size in kinds] for kinds in sizes]
    first = _whole(
        [
            _between(count - plus[1] - minus[1], share * count, plus[0] + minus[0])
            for count, (plus, minus) in zip(of_rows, limits, strict=True)
        ],
        generator,
    )
    second = [count - part for count, part in zip(of_rows, first, strict=True)]
    positive = []
    for half, counts in enumerate((first, second)):
        wanted = [
            _between(count - minus[half], Fraction(count * kinds[0], max(sum(kinds), 1)), plus[half])
            for count, kinds, (plus, minus) in zip(counts, sizes, limits, strict=True)
        ]
        positive.append(_whole(wanted, generator))
    return [
        [(plus, weak_plus), (count - plus, rest - weak_plus)]
        for count, rest, plus, weak_plus in zip(first, second, *positive, strict=True)
    ]


def _between(least: int, number: Fraction, most: int) -> Fraction:
    return min(max(number, Fraction(least)), Fraction(most))


def _whole(numbers: Iterable[Fraction], generator: torch.Generator) -> list[int]:
    """Whole numbers, each next to one of these, whose running sums are next to theirs."""
    before = Fraction(int(torch.randint(_GRAINS, (), generator=generator)), _GRAINS)
    found = []
    for number in numbers:
        after = before + number
        found.append(floor(after) - floor(before))
        before = after
    return found
