"""Shapes: what goes together when weights are removed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from prunekit.elements import Elements, Weights, find_pieces, find_units
from prunekit.errors import InputError
from prunekit.graph import INPUT, Combine, Pool, Scored
from prunekit.graph.capture import Inputs
from prunekit.limits import WHOLE
from prunekit.masks import lowest, lowest_per_row
from prunekit.parts.base import Level, Part
from prunekit.targets import Target, find_targets

INPUTS_FIRST = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Conv1D")
"""The layer types whose weight has its inputs along the first dimension, and not along the second."""


Kind = Literal[
    "filters",
    "neurons",
    "heads",
    "head width",
    "MLP width",
    "residual stream",
    "embedding",
    "input features",
]
"""What groups of units consist of."""

Counted = Literal["weights", "units", "pieces"]
"""What a recipe counts: single weights, whole units, or the pieces of maxout units."""


class Granularity(Part):
    """How the weights of one layer are chosen, once it is known how many of them go.

    Attributes:
        level: what is removed, which other parts must work on.
        counts: what is counted.
        even: whether every layer must lose the same fraction.
        pattern: (n, m) where n of every m consecutive inputs of an output stay.
        by_example: whether the network must be run on an example to find out what there is to choose from.
    """

    level: ClassVar[Level] = "weights"
    even: ClassVar[bool] = False
    pattern: ClassVar[tuple[int, int] | None] = None
    counts: ClassVar[Counted] = "weights"
    by_example: ClassVar[bool] = False

    @abstractmethod
    def select(self, scores: Tensor, count: int) -> Tensor:
        """A mask (True = kept) that removes exactly `count` of the lowest scores that are allowed to go."""

    def elements(
        self,
        model: nn.Module,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        example_inputs: Inputs | None = None,
    ) -> Elements:
        """What there is to choose from in the layers that fit the patterns.

        Raises:
            InputError, ModelError: as `find_targets`.
        """
        return Weights(find_targets(model, targets, ignore))

    def gather(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """Scores of what the granularity counts: pooled if they come per weight, as they are if not."""
        if set(elements.names) <= set(scores):
            return {name: scores[name] for name in elements.names}
        return self.pooled(scores, elements)

    def pooled(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """From scores of weights to scores of what the granularity counts."""
        return dict(scores)

    def rounded(self, size: int, removed: int) -> int:
        """How many elements of a target of this size go if so many are to be removed."""
        return removed

    def check(self, target: Target, sparsities: Sequence[float | None]) -> None:
        """Refuse a layer or a schedule that does not fit the granularity, with an `InputError`."""
        return


class Weight(Granularity):
    """Single weights, anywhere in the layer."""

    name = "weight"

    def select(self, scores: Tensor, count: int) -> Tensor:
        """Keep all but the `count` lowest, ties by position."""
        return ~lowest(scores, count)


class Unit(Weight):
    """Whole units of any network: neurons, filters, heads, each with all that is coupled to it.

    Filters, neurons, heads and their widths are found through residual sums, concatenations and reshapes
    from a run on an example: the first of the data, or `example_inputs`, or one that is made up of the shape
    that the first layer reads. A unit that is removed is off: all weights that make it, go along with it and
    read it are zero. Where statistics run over the units, as in layer norms over a residual stream, zeros
    still count in them until the units are taken out.

    A score of weights is taken over the unit's incoming weights, so that `magnitude` becomes the L1 norm of
    the filter (Li et al. 2016).

    Attributes:
        pool: how scores of weights become one of the unit, within each parameter that it has a part in.
        combine: how several such parameters count, or several places where the unit's outputs are watched.
        over: which parameters are scored: those that make the unit, or `all` that go with it.
        kinds: of groups that are pruned; all by default.
        residual: whether the widths of residual streams are pruned, too.
        inputs: whether the network's input features are units, too.
        round_to: what stays of a group is a multiple of it, where the group is not smaller: removals that an
            allocation asks for beyond such a multiple are left out.
    """

    name = "unit"
    level = "units"
    paper = (
        "filters by their norm: Li et al. 2016, arXiv 1608.08710; groups: Fang et al. 2023 (DepGraph), arXiv "
        "2301.12900"
    )
    counts = "units"
    by_example = True
    pool: Pool = "sum"
    combine: Combine = "mean"
    over: Scored = "producers"
    kinds: tuple[Kind, ...] | None = Field(default=None, min_length=1)
    residual: bool = False
    inputs: bool = False
    round_to: int = Field(default=1, ge=1, le=WHOLE)

    def elements(
        self,
        model: nn.Module,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        example_inputs: Inputs | None = None,
    ) -> Elements:
        """The units of the groups that fit the patterns, the network's outputs apart."""
        return find_units(
            model,
            targets,
            ignore,
            example_inputs=example_inputs,
            kinds=self.kinds,
            residual=self.residual,
            inputs=self.inputs,
            combine=self.combine,
            scored=self.over,
        )

    def pooled(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """Over the parts that a unit has in each parameter, by `pool`, and over parameters, by `combine`."""
        found = elements.coupled
        assert found is not None
        if INPUT in elements.names and self.over == "producers":
            raise InputError("the network's input features have no incoming weights to be scored by")
        return {name: found.pooled(scores, found.group(name), self.pool) for name in elements.names}

    def rounded(self, size: int, removed: int) -> int:
        """The most that can go, up to `removed`, if a multiple has to stay, or everything."""
        return size - min(size, math.ceil((size - removed) / self.round_to) * self.round_to)


class MaxoutPiece(Granularity):
    """One piece of every unit of the maxout layers, in each step.

    The units stay, each with fewer pieces to take the maximum of, the same number in a layer and at least
    one; what an allocation asks for beyond a piece of every unit is left out. A score of weights is summed
    over a piece's incoming weights.
    """

    name = "maxout_piece"
    level = "pieces"
    paper = "Rueda, Grzeszick, Fink 2017, arXiv 1707.06838"
    counts = "pieces"

    def elements(
        self,
        model: nn.Module,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        example_inputs: Inputs | None = None,
    ) -> Elements:
        """The pieces of the maxout layers that fit the patterns."""
        return find_pieces(model, targets, ignore)

    def pooled(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """Sums over the incoming weights of each piece."""
        return {
            target.name: scores[f"{target.name}.layer.weight"].flatten(1).double().sum(1).view(target.shape)
            for target in elements.targets
        }

    def select(self, scores: Tensor, count: int) -> Tensor:
        """Remove the same number of pieces from each unit, as many as `count` has for every one of them."""
        return ~lowest_per_row(scores, min(count // len(scores), scores.shape[1] - 1))

    def check(self, target: Target, sparsities: Sequence[float | None]) -> None:
        """The sparsities that a schedule states must be whole numbers of a unit's pieces and leave one."""
        pieces = target.shape[1]
        for sparsity in sparsities:
            if sparsity is None:  # the allocation states it
                continue
            removed = sparsity * pieces
            if abs(removed - round(removed)) > 1e-9 or not 0 < round(removed) < pieces:
                raise InputError(
                    f"sparsity {sparsity} does not fit the {pieces} pieces of the units of {target.name!r}: "
                    f"steps are multiples of 1/{pieces} up to {(pieces - 1) / pieces:g}"
                )


class NM(Granularity):
    """N:M pattern: of every `m` consecutive inputs of an output, `n` are kept.

    For convolutions consecutive means neighbouring input channels at the same kernel position, as sparse
    tensor cores want it. A step of a schedule keeps a whole number of every `m`, so its sparsity must be a
    multiple of 1/m, and the last step's must be 1 - n/m.
    """

    name = "n:m"
    level = "patterns"
    paper = "Mishra et al. 2021, arXiv 2104.08378"
    even = True
    n: int = Field(default=2, ge=1, le=WHOLE)
    m: int = Field(default=4, ge=2, le=WHOLE)

    @model_validator(mode="after")
    def _n_below_m(self) -> NM:
        if self.n >= self.m:
            raise ValueError(f"n = {self.n} of m = {self.m} removes nothing: n must be below m")
        return self

    def select(self, scores: Tensor, count: int) -> Tensor:
        """Remove the same number from every group of `m`; `count` must be a multiple of the groups."""
        inputs_last = scores.movedim(1, -1)
        groups = inputs_last.reshape(-1, self.m)
        if count % len(groups):
            raise InputError(
                f"{count} weights cannot be removed evenly from {len(groups)} groups of {self.m}"
            )
        kept = ~lowest_per_row(groups, count // len(groups))
        return kept.view(inputs_last.shape).movedim(-1, 1)

    @property
    def pattern(self) -> tuple[int, int]:  # type: ignore[override]
        """n of every m."""
        return self.n, self.m

    def check(self, target: Target, sparsities: Sequence[float | None]) -> None:
        """The inputs must divide into groups of `m`, the sparsities into whole weights of a group."""
        if target.kind in INPUTS_FIRST:
            raise InputError(
                f"{target.name} of a {target.kind} has its inputs in the first dimension, where "
                f"{self.n}:{self.m} is not supported: name {target.layer!r} in `ignore`"
            )
        if target.shape[1] % self.m:
            raise InputError(
                f"{target.name} has {target.shape[1]} inputs, which {self.n}:{self.m} does not divide: "
                f"name {target.layer!r} in `ignore`"
            )
        last = (self.m - self.n) / self.m
        for sparsity in sparsities:
            if sparsity is None:
                raise InputError(
                    f"the granularity {self.n}:{self.m} needs a schedule that states its sparsity"
                )
            removed = sparsity * self.m
            if abs(removed - round(removed)) > 1e-9 or round(removed) > self.m - self.n:
                raise InputError(
                    f"sparsity {sparsity:g} does not fit the granularity {self.n}:{self.m}: "
                    f"steps are multiples of 1/{self.m} up to {last:g}"
                )
        if round((sparsities[-1] or 0.0) * self.m) != self.m - self.n:
            raise InputError(
                f"the schedule ends at sparsity {sparsities[-1]:g}, the granularity {self.n}:{self.m} at "
                f"{last:g}"
            )
