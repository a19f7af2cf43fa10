"""Schedules: the steps of a pruning and the sparsity at each, a fraction of the original count."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from prunekit.errors import InputError
from prunekit.parts.base import Part, Requirement
from prunekit.settings import STEPS, WHOLE

__all__ = [
    "AllocationDecides",
    "Constant",
    "Cubic",
    "Explicit",
    "FixedCount",
    "Geometric",
    "Linear",
    "OneShot",
    "Schedule",
    "Sparsity",
    "Step",
]


def _below_one(value: float) -> float:
    if not 0 <= value < 1:
        hint = f": write {value / 100:g} for {value:g} %" if 1 < value < 100 else ""
        raise ValueError(f"{value:g} is no sparsity: it is a fraction of the original count, in [0, 1){hint}")
    return value


Sparsity = Annotated[float, AfterValidator(_below_one)]
"""A fraction removed of the original count, in [0, 1)."""


Order = Literal["all", "forward", "backward"]
"""Whether a level of the schedule takes all layers at once, or one after the other."""


@dataclass(frozen=True)
class Step:
    """One step of a pruning.

    Attributes:
        number: from 1.
        sparsity: the fraction of the original count to be removed after it; None if the allocation decides.
        previous: the same of the level before; 0 at the first.
        round: the level of the schedule, from 1, and `rounds` how many there are.
        layers: the parameters that it may change; all, or one with an order.
    """

    number: int = 1
    sparsity: float | None = None
    previous: float = 0.0
    round: int = 1
    rounds: int = 1
    layers: tuple[str, ...] = ()


class Schedule(Part):
    """How far each step of the pruning goes.

    Attributes:
        of_count: whether it states a number of weights or units, and not a fraction.
        stands_still: whether a step may have the sparsity of the one before it.
    """

    of_count: ClassVar[bool] = False
    stands_still: ClassVar[bool] = False

    @property
    def stated(self) -> bool:
        """Whether it states a sparsity, and does not leave it to the allocation."""
        return self.sparsities()[0] is not None

    @abstractmethod
    def sparsities(self) -> tuple[float | None, ...]:
        """The sparsity after each step; None where the allocation decides by itself."""

    def levels(self, total: int) -> tuple[float | None, ...]:
        """The same for a network with this many weights (or units) to choose from."""
        return self.sparsities()

    def plan_steps(
        self, levels: Sequence[float | None], names: Sequence[str], order: Order = "all"
    ) -> tuple[Step, ...]:
        """The steps of a pruning: each level for all layers at once, or for one after the other.

        Args:
            levels: the sparsities.
            names: of the pruned parameters or groups of units, in the network's order.
            order: which layers a step touches.

        Raises:
            InputError: if these are too many steps.
        """
        groups = [tuple(names)] if order == "all" else [(name,) for name in names]
        if order == "backward":
            groups.reverse()
        if len(levels) * len(groups) > STEPS:
            raise InputError(
                f"the schedule {self.name!r} has {len(levels):,} levels, each of "
                f"{len(groups)} layers in turn: a pruning may have at most {STEPS:,} steps"
            )
        return tuple(
            Step(
                number=level * len(groups) + turn + 1,
                sparsity=sparsity,
                previous=(levels[level - 1] if level else 0.0) or 0.0,
                round=level + 1,
                rounds=len(levels),
                layers=layers,
            )
            for level, sparsity in enumerate(levels)
            for turn, layers in enumerate(groups)
        )


class OneShot(Schedule):
    """Everything in one step."""

    name = "one_shot"
    sparsity: Sparsity

    def sparsities(self) -> tuple[float | None, ...]:
        """The one sparsity."""
        return (self.sparsity,)


class Constant(Schedule):
    """One sparsity from the first step on; at the later ones the recipe's `grow` exchanges weights.

    Attributes:
        steps: how many, the first removal included.
    """

    name = "constant"
    paper = "Mocanu et al. 2018 (SET), arXiv 1707.04780"
    stands_still = True
    requires = (
        Requirement(
            "grow",
            lambda grow: grow is not None,
            "{part} removes nothing after its first step: give the recipe a 'grow' that exchanges weights, "
            "or take the schedule 'one_shot'",
        ),
    )
    sparsity: Sparsity
    steps: int = Field(ge=1, le=STEPS)

    def sparsities(self) -> tuple[float | None, ...]:
        """The one sparsity, as often as there are steps."""
        return (self.sparsity,) * self.steps


class Linear(Schedule):
    """Equal parts of the original count: 9, 18, ... 90 % for sparsity 0.9 in 10 steps."""

    name = "linear"
    sparsity: Sparsity
    steps: int = Field(ge=1, le=STEPS)

    def sparsities(self) -> tuple[float | None, ...]:
        """sparsity * k / steps for k = 1 ... steps."""
        found = tuple(self.sparsity * k / self.steps for k in range(1, self.steps))
        return (*found, self.sparsity)  # s * n / n need not be s in floating point


class Geometric(Schedule):
    """The same share of what is left at every step; 1 - (1 - rate)^k after step k.

    Give either `rate`, the share removed of what is left, or the final `sparsity`.
    """

    name = "geometric"
    paper = "Frankle, Carbin 2019, arXiv 1803.03635"
    steps: int = Field(ge=1, le=STEPS)
    rate: Sparsity | None = None
    sparsity: Sparsity | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Geometric:
        if (self.rate is None) == (self.sparsity is None):
            raise ValueError("give either 'rate' (of what is left, per step) or 'sparsity' (at the end)")
        return self

    def sparsities(self) -> tuple[float | None, ...]:
        """1 - keep^k, with keep = 1 - rate or the steps-th root of 1 - sparsity."""
        if self.rate is not None:
            keep = 1 - self.rate
        else:
            assert self.sparsity is not None
            keep = (1 - self.sparsity) ** (1 / self.steps)
        found = [1 - keep**k for k in range(1, self.steps + 1)]
        # the root and its power do not cancel in floating point: the last step is what was asked for
        return (*found[:-1], self.sparsity if self.sparsity is not None else found[-1])


class Cubic(Schedule):
    """Fast at first, slow at the end: s_k = s + (s_0 - s) (1 - k/steps)^3."""

    name = "cubic"
    paper = "Zhu, Gupta 2017 (automated gradual pruning), arXiv 1710.01878"
    sparsity: Sparsity
    steps: int = Field(ge=1, le=STEPS)
    initial: Sparsity = 0.0

    def sparsities(self) -> tuple[float | None, ...]:
        """The cubic for k = 1 ... steps."""
        span = self.initial - self.sparsity
        return tuple(self.sparsity + span * (1 - k / self.steps) ** 3 for k in range(1, self.steps + 1))


class Explicit(Schedule):
    """A list of sparsities."""

    name = "explicit"
    values: tuple[Sparsity, ...] = Field(min_length=1, max_length=STEPS)

    def sparsities(self) -> tuple[float | None, ...]:
        """The list."""
        return self.values


class FixedCount(Schedule):
    """A fixed number of weights (or units) in every step, up to a sparsity; the last step may be smaller.

    With a score that looks at data, the data is looked at again after each so many removals.

    Attributes:
        every: how many are removed in a step.
        sparsity: at the end.
    """

    name = "fixed_count"
    of_count = True
    every: int = Field(ge=1, le=WHOLE)
    sparsity: Sparsity

    def sparsities(self) -> tuple[float | None, ...]:
        """The last one: how many there are before it depends on the network."""
        return (self.sparsity,)

    def levels(self, total: int) -> tuple[float | None, ...]:
        """every / total, 2 every / total, ... and the sparsity.

        Raises:
            InputError: if these are too many steps.
        """
        last = round(self.sparsity * total)
        if last > STEPS * self.every:
            raise InputError(
                f"counts: every = {self.every}: to remove {last:,} of {total:,} would take "
                f"{-(-last // self.every):,} steps, at most {STEPS:,} are allowed: remove "
                f"{-(-last // STEPS):,} or more in a step"
            )
        return (*(count / total for count in range(self.every, last, self.every)), self.sparsity)


class AllocationDecides(Schedule):
    """A number of rounds whose amounts the allocation itself decides, as `threshold`, `manual`, `none`, and
    a `budget` with `at_most`.

    Attributes:
        steps: how many rounds.
        turns: how many steps the last one has; by default one, or with an order of layers one for each.
    """

    name = "allocation_decides"
    steps: int = Field(default=1, ge=1, le=STEPS)
    turns: int | None = Field(default=None, ge=0, le=STEPS)

    def sparsities(self) -> tuple[float | None, ...]:
        """None for every round."""
        return (None,) * self.steps

    def plan_steps(
        self, levels: Sequence[float | None], names: Sequence[str], order: Order = "all"
    ) -> tuple[Step, ...]:
        """All steps but those that the last round does not have.

        Raises:
            InputError: if these are too many steps, or a round has fewer than `turns`.
        """
        steps = super().plan_steps(levels, names, order)
        whole = len(steps) // len(levels)
        if self.turns is None:
            return steps
        if self.turns > whole:
            raise InputError(
                f"the schedule {self.name!r}: turns = {self.turns}: a round has {whole} steps with the order "
                f"{order!r}"
            )
        return steps[: len(steps) - whole + self.turns]


def check_increasing(sparsities: tuple[float | None, ...]) -> None:
    """Refuse a schedule that stands still or goes back, with an `InputError`."""
    stated = [sparsity for sparsity in sparsities if sparsity is not None]
    if stated and stated[0] == 0:
        raise InputError("the schedule begins with sparsity 0, which removes nothing: begin above 0")
    for earlier, later in zip([0.0, *stated], stated, strict=False):
        if later <= earlier:
            raise InputError(
                "the schedule must be strictly increasing above 0, "
                f"but sparsity {later:g} follows {earlier:g}"
            )
