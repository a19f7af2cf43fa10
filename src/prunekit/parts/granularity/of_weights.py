"""Granularities of single weights and of patterns of them; what a recipe counts and removes on a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from prunekit import graph
from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError
from prunekit.graph.pooling import Pool
from prunekit.masks import Masks, lowest, lowest_per_row
from prunekit.parts.base import Level, Part
from prunekit.settings import WHOLE
from prunekit.targets import Target, find_targets, owner_of, unwrap

INPUTS_FIRST = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Conv1D")
"""The layer types whose weight has its inputs along the first dimension, and not along the second."""


Counted = Literal["weights", "units", "pieces"]
"""What a recipe counts: single weights, whole units, or the pieces of maxout units."""


@dataclass(frozen=True)
class Elements(ABC):
    """The elements that a recipe chooses from.

    Attributes:
        model: the network, without wrappers.
        targets: what they belong to: one parameter of weights, or one group of units each.
    """

    model: nn.Module = field(repr=False)
    targets: tuple[Target, ...]

    @property
    def names(self) -> list[str]:
        """The targets' names."""
        return [target.name for target in self.targets]

    @property
    def coupled(self) -> graph.Coupled | None:
        """The groups whose units are counted; None where something else is."""
        return None

    @property
    @abstractmethod
    def parameters(self) -> list[str]:
        """The full names of the weights that a score may look at."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """These weights by name."""
        return {name: self.model.get_parameter(name).detach() for name in self.parameters}

    @abstractmethod
    def all_kept(self) -> Masks:
        """Flags that keep every element."""

    @abstractmethod
    def masks(self, kept: Masks) -> Masks:
        """The masks over parameters that remove what is not kept."""

    @abstractmethod
    def gone(self, name: str, kept: Masks) -> Tensor:
        """The elements of a target that are removed: by this pruning, or as zeros by one before it.

        A target that is zero as a whole has not been pruned but begins at zero, as a LoRA's second matrix or
        a new head does: its elements are ranked by their scores.
        """

    def smaller(self, kept: Masks) -> nn.Module:
        """A copy of the model without what is not kept, to be counted or timed.

        Raises:
            InputError: where single elements cannot be taken out.
        """
        raise InputError("only whole units can be taken out of a network: use the granularity 'unit'")

    def shielded(self, name: str, scores: Tensor) -> Tensor:
        """The scores of a target, with infinity for elements that must stay whatever they score."""
        return scores


def unless_all(flags: Tensor) -> Tensor:
    """Flags as they are; where all are True, none is."""
    return flags & ~flags.all()


class Weights(Elements):
    """Single weights: what is counted is what is masked."""

    @property
    def parameters(self) -> list[str]:
        """The pruned parameters."""
        return self.names

    def all_kept(self) -> Masks:
        """One flag per weight, on its device."""
        return Masks.ones(self.model, self.names)

    def masks(self, kept: Masks) -> Masks:
        """The flags themselves."""
        return kept

    def gone(self, name: str, kept: Masks) -> Tensor:
        """Zeros between other weights count as removed, so that pruning twice removes no more than once."""
        return ~kept[name] | unless_all(self.model.get_parameter(name).detach() == 0)


class Granularity(Part):
    """How the weights of one layer are chosen, once it is known how many of them go.

    Attributes:
        level: what is removed, which other parts must work on.
        counts: what is counted.
        even: whether every layer must lose the same fraction.
        pattern: (n, m) where n of every m consecutive inputs of an output stay.
        by_example: whether the network must be run on an example to find out what there is to choose from.
        one_target: whether all that there is to choose from belongs together, so that no layers are compared.
    """

    home: ClassVar[str] = "prunekit.parts.granularity"
    level: ClassVar[Level] = "weights"
    even: ClassVar[bool] = False
    pattern: ClassVar[tuple[int, int] | None] = None
    counts: ClassVar[Counted] = "weights"
    by_example: ClassVar[bool] = False
    one_target: ClassVar[bool] = False

    @abstractmethod
    def select(self, scores: Tensor, count: int) -> Tensor:
        """A mask (True = kept) that removes exactly `count` of the lowest scores that are allowed to go."""

    def working_bytes(self, rows: int, columns: int) -> int:
        """Scores in 8 bytes each, a copy of them that is parted, and masks."""
        return (8 + 8 + 3) * rows * columns

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
        model = unwrap(model)
        return Weights(model, find_targets(model, targets, ignore))

    def gather(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """Scores of what the granularity counts: pooled if they come per weight, as they are if not."""
        own = elements.weights  # a group may have the name of the parameter that makes it
        of_weights = self.counts == "units" and all(
            name in own and scores.get(name, own[name]).shape == own[name].shape for name in elements.names
        )
        if set(elements.names) <= set(scores) and not of_weights:
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

    def working_bytes(self, rows: int, columns: int) -> int:
        """Scores, their places, the scores in that order, in 8 bytes each, and masks."""
        return (8 + 8 + 8 + 3) * rows * columns

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
        if not target.types.isdisjoint(INPUTS_FIRST):
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


class FilterShape(Granularity):
    """One weight of every filter of a convolution, at the same channel and place: a column of its matrix.

    A score of weights is pooled over the column. What an allocation asks for beyond whole columns is left
    out.

    Attributes:
        pool: how the scores of a column's weights become one.
    """

    name = "filter_shape"
    level = "patterns"
    paper = "Lebedev, Lempitsky 2016, arXiv 1506.02515; Wen et al. 2016 (SSL), arXiv 1608.03665"
    pool: Pool = "sum"

    def elements(
        self,
        model: nn.Module,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        example_inputs: Inputs | None = None,
    ) -> Columns:
        """The weights of the convolutions that fit the patterns, all of them by default.

        Raises:
            InputError: naming a layer that is no convolution, or one whose filters read different channels.
            ModelError: as `find_targets`.
        """
        model = unwrap(model)
        return Columns(model, shaped_targets(model, targets, ignore))

    def gather(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """Each column's score, for each of its weights."""
        return {name: self._of_columns(each).expand_as(each) for name, each in scores.items()}

    def select(self, scores: Tensor, count: int) -> Tensor:
        """Remove as many of the lowest columns as `count` has room for; those that are gone go first."""
        return ~lowest(scores.amax(0), count // len(scores)).expand_as(scores).clone()

    def _of_columns(self, scores: Tensor) -> Tensor:
        rows = scores.flatten(1)
        member = graph.Member("", 1, tuple((column,) for column in range(rows.shape[1])), "consumer")
        return graph.of_units(rows, member, self.pool).view(1, *scores.shape[1:])


class Columns(Weights):
    """Weights of convolutions that go by whole columns."""

    def gone(self, name: str, kept: Masks) -> Tensor:
        """Columns of zeros between others count as removed; a zero in another column does not."""
        zeros = (self.model.get_parameter(name).detach() == 0).all(0)
        return ~kept[name] | unless_all(zeros).expand_as(kept[name])


def shaped_targets(
    model: nn.Module, targets: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> tuple[Target, ...]:
    """The weights of the convolutions that fit the patterns: those that have filter shapes.

    Args:
        model: the network, without wrappers.
        targets: as of `find_targets`; None for all convolutions.
        ignore: as of `find_targets`.

    Raises:
        InputError: naming a layer that is no convolution, or one whose filters read different channels.
        ModelError: as `find_targets`; if there is no convolution.
    """
    found = find_targets(model, targets, ignore)
    plain = tuple(each for each in found if len(each.shape) > 2 and each.types.isdisjoint(INPUTS_FIRST))
    if targets is not None and len(plain) < len(found):
        odd = next(each for each in found if each not in plain)
        raise InputError(
            f"{odd.name} of a {odd.kind} has no filter shapes, which are those of convolutions: "
            f"leave {odd.layer!r} out of `targets`"
        )
    if not plain:
        raise ModelError("the model has no convolution, so there are no filter shapes in it")
    for each in plain:
        check_one_input(model, each)
    return plain


def check_one_input(model: nn.Module, target: Target) -> None:
    """Refuse, with an `InputError`, a layer whose filters read different channels."""
    if getattr(owner_of(model, target.name), "groups", 1) != 1:
        raise InputError(
            f"the filters of {target.name} read different channels, so they have no inputs in common: "
            f"name {target.layer!r} in `ignore`"
        )
