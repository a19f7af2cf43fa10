"""What an allocation is: from scores and a sparsity to the number of weights that each layer loses."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from prunekit.errors import InputError
from prunekit.parts.base import Part, Requirement
from prunekit.parts.context import CostModel, StepContext
from prunekit.targets import Target

if TYPE_CHECKING:
    from prunekit.parts.granularity import Shape


STATED = Requirement(
    "schedule",
    lambda schedule: schedule.stated,
    "the schedule {value} states no sparsity, which {part} needs: use a schedule that does, such as 'linear'",
)
"""The allocation shares out a sparsity."""

DECIDED = Requirement(
    "schedule",
    lambda schedule: not schedule.stated,
    "{part} decides the amount itself: use the schedule 'rounds', not {value}",
)
"""The allocation states the amount by itself."""


class Allocation(Part):
    """How the removals are shared over layers.

    Attributes:
        floor: the fraction of every layer that is always kept, rounded up to whole weights, so that no
            layer is emptied by accident; 0 allows it.
        local: whether a layer's amount follows from its own scores and the sizes of the others.
        even: whether every layer loses the same fraction, which some shapes need.
        of_figure: whether the schedule's sparsity is a fraction of what the network costs, not of its units.
        by_example: whether the network is run on an example.
        needs_data: whether the allocation evaluates the network.
    """

    requires: ClassVar[tuple[Requirement, ...]] = (STATED,)
    local: ClassVar[bool] = False
    even: ClassVar[bool] = False
    of_figure: ClassVar[bool] = False
    by_example: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False

    floor: float = Field(default=0.001, ge=0, lt=1)

    @abstractmethod
    def amounts(self, context: StepContext) -> dict[str, int]:
        """The number of weights that each layer has lost after this step, those before it included."""

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Refuse what cannot be reached on these layers, with an `InputError`."""
        if sparsity is None:
            return
        total = sum(target.size for target in targets)
        reachable = sum(self.capacity(target.size, target.least) for target in targets)
        if round(sparsity * total) > reachable:
            what = "units" if targets[0].kind == "units" else "weights"
            raise InputError(
                f"sparsity {sparsity:g} removes {round(sparsity * total):,} of {total:,} {what}, but the "
                f"floor of {self.floor:g} per layer allows {reachable:,}: "
                "lower the sparsity or the allocation's floor"
            )

    def check_even(self, shape: Shape, targets: Sequence[Target]) -> None:
        """Refuse a shape that takes the same fraction of every layer where this gives another, with an
        `InputError`."""
        if shape.even and not self.even and len(targets) > 1:
            raise InputError(
                f"the shape {shape.name!r} takes the same fraction of every layer, which the allocation "
                f"{self.name!r} does not give: use 'per_layer' (with output_rate 1)"
            )

    def check_network(self, targets: Sequence[Target], sparsity: float | None, cost_model: CostModel) -> None:
        """Refuse what cannot be reached on this network, with an `InputError`."""
        return

    def capacity(self, size: int, least: int = 0) -> int:
        """The most weights that a layer of this size may lose, of which at least so many have to stay."""
        return size - max(math.ceil(self.floor * size - 1e-9), least)

    def max_removable(self, name: str, context: StepContext) -> int:
        """The most weights that a layer may lose."""
        return self.capacity(context.scores[name].numel(), context.min_kept.get(name, 0))

    def share_out(self, total: int, wanted: Mapping[str, float], context: StepContext) -> dict[str, int]:
        """`share_out` between what each layer has lost and what its floor allows."""
        pruned = {name: context.pruned.get(name, 0) for name in wanted}
        capacity = {
            name: lost if name in context.frozen else max(self.max_removable(name, context), lost)
            for name, lost in pruned.items()
        }
        return share_out(total, wanted, capacity, pruned)


def share_out(
    total: int,
    wanted: Mapping[str, float],
    capacity: Mapping[str, int],
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Whole numbers near `wanted` that add up to `total` exactly, each between `least` and its capacity.

    What overflows a layer goes to the others in proportion to the room they have left; the last units go
    by largest remainder, ties to the earlier layer.
    """
    least = least or dict.fromkeys(wanted, 0)
    amounts = {
        name: min(max(value, float(least[name])), float(capacity[name])) for name, value in wanted.items()
    }
    missing = total - sum(amounts.values())
    room = {
        name: capacity[name] - value if missing > 0 else value - least[name]
        for name, value in amounts.items()
    }
    available = sum(room.values())
    if available > 0:
        amounts = {name: value + missing * room[name] / available for name, value in amounts.items()}
    whole = {name: min(math.floor(value + 1e-9), capacity[name]) for name, value in amounts.items()}
    by_remainder = sorted(amounts, key=lambda name: whole[name] - amounts[name])
    for name in [*by_remainder, *by_remainder]:
        if sum(whole.values()) < total and whole[name] < capacity[name]:
            whole[name] += 1
    return whole
