"""The context of a step, all that parts are told; and what every score and every allocation is."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit import graph
from prunekit.batches import Inputs
from prunekit.distributed import Owners
from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.base import LEVELS, Level, Part, Requirement
from prunekit.parts.granularity import Elements, Granularity, Weight
from prunekit.parts.schedule import Step
from prunekit.statistics import Found
from prunekit.targets import Target, owner_of
from prunekit.task import PLAIN, Task

__all__ = ["Allocation", "CostModel", "Kept", "LayerScores", "Score", "Scores", "StepContext"]

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class CostModel:
    """How to look at the network that would be left.

    Attributes:
        elements: what is removed, which can be built without.
        chosen: from the units that layers have lost to the flags that a step would choose, rounded as its
            granularity says.
        example_inputs: what it can be run on.
    """

    elements: Elements
    chosen: Callable[[Mapping[str, int]], Masks]
    example_inputs: Inputs | None


@dataclass(frozen=True)
class StepContext:
    """What a part may look at, at one step of a pruning.

    "Elements" are what the recipe counts: weights, units or pieces. Nothing of it is to be changed, but for
    the part's own state, and for the network by a repair.

    Attributes:
        weights: the parameters by full name.
        statistics: what was measured before the step, by the requests of `needs`.
        model: the network, without wrappers; in a repair, what is to be removed still has its values.
        step: where the schedule is.
        kept: flags of the elements that are kept before the step: by group (units,), or masks of weights.
        generator: the source of random numbers, seeded for the part and the step (and layer, in a selection).
        coupled: the groups whose units are counted.
        granularity: what goes together.
        states: what the recipe's parts carry from step to step, by their keys and names of their own.
        state: that of the part that is asked.
        teacher: the network to learn from that was given; None for none.
        scores: (from the allocation on) of all elements; minus infinity for what is removed already.
        loss_with: (allocation) the loss on calibration data if only these were kept; None without data.
        pruned: (allocation) the elements that each layer has lost for good; it cannot be given back less.
        frozen: (allocation) the layers that this level of the schedule is through with, where an order takes
            them one after the other; they stay at what they have lost.
        min_kept: (allocation) how many elements of each layer have to stay, whatever the floor is.
        cost_model: (allocation) how to look at the network that would be left; None where it cannot be built.
        kept_after: (repair) flags of the elements that are kept after the step.
        masks: (repair, and where a retraining sets values) the same as masks over the parameters.
        task: (training) how the network is fed a batch, and what its loss is.
        owners: by parameter the process that solves its layer; empty where each process solves all.
        shared: (selection, repair) what `once` has worked out; None where too many layers are pruned together
            for it to be kept.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Found = field(default_factory=dict)
    model: nn.Module = field(default_factory=nn.Module)
    step: Step = field(default_factory=Step)
    kept: Masks = field(default_factory=lambda: Masks({}))
    generator: torch.Generator = field(default_factory=torch.Generator)
    coupled: graph.Coupled | None = None
    granularity: Granularity = field(default_factory=Weight)
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: nn.Module | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    loss_with: Callable[[Masks], float] | None = None
    pruned: Mapping[str, int] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    min_kept: Mapping[str, int] = field(default_factory=dict)
    cost_model: CostModel | None = None
    kept_after: Masks = field(default_factory=lambda: Masks({}))
    masks: Masks = field(default_factory=lambda: Masks({}))
    task: Task = PLAIN
    owners: Owners = field(default_factory=dict)
    shared: dict[object, Any] | None = None

    @classmethod
    def of(cls, elements: Elements, granularity: Granularity, kept: Masks, **more: Any) -> StepContext:
        """What is known of a network as it is, and what else is."""
        return cls(
            elements.weights,
            model=elements.model,
            kept=kept,
            coupled=elements.coupled,
            granularity=granularity,
            **more,
        )

    def told(self, key: str, **more: Any) -> StepContext:
        """The context for the part of this key, which it sees its own state in, and what else is known."""
        return replace(self, state=self.states.get(key, {}), **more)

    def once(self, key: object, found: Callable[[], Kept]) -> Kept:
        """What selection and repair both need, of layers with the same statistics, worked out by the first.

        Args:
            key: what it is.
            found: works it out.
        """
        if self.shared is None:
            return found()
        if key not in self.shared:
            self.shared[key] = found()
        value: Kept = self.shared[key]
        return value

    def leave(self, key: object, value: object) -> None:
        """Leave to the repair what the selection has found, where `once` keeps what it works out."""
        if self.shared is not None:
            self.shared[key] = value

    def take_left(self, key: object) -> Any:
        """What was left, once; None if nothing was."""
        return None if self.shared is None else self.shared.pop(key, None)

    @property
    def of_units(self) -> bool:
        """Whether units are counted."""
        return self.coupled is not None

    @property
    def counted(self) -> Mapping[str, Tensor]:
        """What is counted, one tensor each: the weights, or the flags of the units."""
        return self.kept if self.of_units else self.weights

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(n, m) where n of every m consecutive inputs of an output stay; None for no pattern."""
        return self.granularity.pattern

    @property
    def sparsity(self) -> float:
        """The fraction of the original count that the schedule states for this step."""
        assert self.step.sparsity is not None
        return self.step.sparsity

    def layer(self, name: str) -> nn.Module:
        """The module that owns a parameter, by the parameter's full name."""
        return owner_of(self.model, name)


Scores = dict[str, Tensor]
"""One tensor of scores per parameter, of its shape; or (units,) per group of units."""


class LayerScores(Mapping[str, Tensor]):
    """The scores of each layer, found when they are asked for and held by nobody.

    Args:
        kept: what there is to be scored, by layer.
        score: the scores of one layer by its name.
    """

    def __init__(self, kept: Mapping[str, Tensor], score: Callable[[str], Tensor]) -> None:
        self._kept, self._score = kept, score

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._kept:
            raise KeyError(name)
        return self._score(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


class Score(Part):
    """A pruning criterion: higher = keep. Its settings are its fields, its data are in the context.

    Scores of weights work on everything: a granularity pools them into those of units.

    Attributes:
        comparable: by what the recipe removes, where the values of different layers can be compared. They
            can where they are changes of the loss, shares or normalised; not where they are ranks within a
            row or a layer, or sums that grow with a layer's size. Where they cannot, each layer loses the
            same fraction by default, and an allocation that compares layers is refused.
        compared_if_named: where they cannot, but an allocation that does is taken if it is named, as it was
            published.
        by_layer: whether the scores of a layer follow from its own weights and statistics alone, so that they
            need not all be in memory at a time.
    """

    home: ClassVar[str] = "prunekit.parts.scores"
    comparable: ClassVar[tuple[Level, ...]] = ()
    compared_if_named: ClassVar[tuple[Level, ...]] = ()
    by_layer: ClassVar[bool] = False

    @property
    def of_weights(self) -> bool:
        """Whether the numbers are of weights, which a granularity pools, and not of what it counts."""
        return "weights" in self.works_on

    def working_bytes(self, rows: int, columns: int) -> int:
        """Scores, and what they are worked out from, in 8 bytes each."""
        return max(6 * 8 * rows * columns, super().working_bytes(rows, columns))

    def check(self, context: StepContext) -> None:
        """Refuse a model that cannot be scored, before anything is done to it.

        Args:
            context: as it is before the first step, without statistics.

        Raises:
            InputError, ModelError: naming the layer.
        """
        return

    @abstractmethod
    def __call__(self, context: StepContext) -> Scores:
        """The score of every weight, or of every unit."""


STATED = Requirement(
    "schedule",
    lambda schedule: schedule.stated,
    "the schedule {value} states no sparsity, which {part} needs: use a schedule that does, such as 'linear'",
)
"""The allocation shares out a sparsity."""


ASKED, REACHED = "asked", "reached"
"""The names by which the state of a budget says what a step may leave at most, and what it has left."""


class Allocation(Part):
    """How the removals are shared over layers.

    Attributes:
        floor: the fraction of every layer that is always kept, rounded up to whole weights, so that no
            layer is emptied by accident; 0 allows it.
        local: whether a layer's amount follows from its own scores and the sizes of the others.
        by_size: whether it follows from the sizes alone: no score is looked at, and those of
            `StepContext.scores` need not be in memory at a time.
        compares: whether the scores of one layer are compared with those of another.
        even: whether every layer loses the same fraction, which some granularities need.
        of_cost: whether the schedule's sparsity is a fraction of what the network costs, not of its units;
            its state then has `ASKED` and `REACHED`.
        by_example: whether the network is run on an example.
        needs_data: whether the allocation evaluates the network.
        changes: whether it changes the network's values before it counts.
    """

    home: ClassVar[str] = "prunekit.parts.allocation"
    requires: ClassVar[tuple[Requirement, ...]] = (STATED,)
    local: ClassVar[bool] = False
    by_size: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    even: ClassVar[bool] = False
    of_cost: ClassVar[bool] = False
    by_example: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    changes: ClassVar[bool] = False

    floor: float = Field(default=0.001, ge=0, lt=1)

    @abstractmethod
    def amounts(self, context: StepContext) -> dict[str, int]:
        """The number of weights that each layer has lost after this step, those before it included."""

    def shown(self, value: float) -> str:
        """A value of the cost that `of_cost` tells of, as people read it."""
        return f"{value:g}"

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Refuse what cannot be reached on these layers, with an `InputError`."""
        if sparsity is None:
            return
        total = sum(target.shape.numel() for target in targets)
        reachable = sum(self.capacity(target.shape.numel(), target.least) for target in targets)
        if round(sparsity * total) > reachable:
            what = "units" if targets[0].kind == "units" else "weights"
            raise InputError(
                f"sparsity {sparsity:g} removes {round(sparsity * total):,} of {total:,} {what}, but the "
                f"floor of {self.floor:g} per layer allows {reachable:,}: "
                "lower the sparsity or the allocation's floor"
            )

    def check_even(self, granularity: Granularity, targets: Sequence[Target]) -> None:
        """Refuse a granularity that takes the same fraction of every layer where this gives another, with an
        `InputError`."""
        if granularity.even and not self.even and len(targets) > 1:
            raise InputError(
                f"the granularity {granularity.name!r} takes the same fraction of every layer, which the "
                f"allocation {self.name!r} does not give: use 'per_layer' (with output_rate 1)"
            )

    def check_network(self, targets: Sequence[Target], sparsity: float | None, cost_model: CostModel) -> None:
        """Refuse what cannot be reached on this network, with an `InputError`."""
        return

    def capacity(self, size: int, least: int = 0) -> int:
        """The most weights that a layer of this size may lose, of which at least so many have to stay."""
        return size - max(math.ceil(self.floor * size - 1e-9), least)

    def max_removable(self, name: str, context: StepContext) -> int:
        """The most weights that a layer may lose."""
        return self.capacity(context.kept[name].numel(), context.min_kept.get(name, 0))


def comparison_refusal(score: Score, allocation: Allocation, level: Level) -> str:
    """What is said of an allocation that compares scores which are not comparable across layers.

    Args:
        score: that of the recipe.
        allocation: that of the recipe.
        level: what it removes.
    """
    instead = [
        repr(name)
        for name, each in sorted(Allocation.own_members().items())
        if each.compares is False and level in each.works_on and each.requires == Allocation.requires
    ]
    return (
        f"the allocation {allocation.name!r} compares layers, and the score {score.name!r} of "
        f"{LEVELS[level]} means another thing in each: use the allocation {', '.join(instead)}"
        + (", or its share 'per_layer'" if "share" in type(allocation).model_fields else "")
        + (", or say in the score's class that it is `comparable`" if not score.is_own() else "")
    )
