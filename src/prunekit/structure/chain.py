"""A chain of layers: its operations in order, and the units that its layers hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from prunekit.errors import InputError, ModelError

INPUT = "input"
"""The name of the group of the network's own input features."""


@dataclass(frozen=True)
class Stage:
    """One operation of a chain.

    Attributes:
        name: the module's full name, or a description of the function.
        run: the module or the function, from one tensor to one tensor; it never changes what it is given,
            even where the network works in place.
        module: the module, if it is one.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    module: nn.Module | None


@dataclass(frozen=True)
class UnitGroup:
    """The units that one layer hands to the next.

    Attributes:
        name: the producing layer's full name; `input` for the network's input features.
        units: how many there are: neurons of a linear layer, filters of a convolution.
        producer: the full name of the layer whose outputs they are; None for input features.
        norms: batch norms on the way, whose channels follow the units: `repeat` channels each behind a
            flatten, else one.
        consumer: the full name of the layer that reads them.
        repeat: neighbouring inputs of the consumer per unit: height x width after a flatten, else 1.
        fixed: why the units can be masked but not taken out, such as a number written into `forward`; empty
            if they can.
    """

    name: str
    units: int
    producer: str | None
    norms: tuple[str, ...]
    consumer: str
    repeat: int
    fixed: str = ""


@dataclass(frozen=True)
class Chain:
    """A network whose every operation has one input and one output.

    Attributes:
        stages: the operations in order.
        groups: the units between consecutive linear or convolution layers, front to back; the network's
            outputs are no group, and its input features (`INPUT`) are one only where they were asked for.
        refused: what would be a group but for a reason, by name, with the reason: units that a grouped
            convolution makes or reads.
    """

    stages: tuple[Stage, ...]
    groups: tuple[UnitGroup, ...]
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def modules(self) -> list[nn.Module]:
        """The modules among the operations."""
        return [stage.module for stage in self.stages if stage.module is not None]

    def group(self, name: str) -> UnitGroup:
        """The group of that name.

        Raises:
            ModelError: if there would be one but for a reason, which is given.
            InputError: if there is none; the message names those that exist.
        """
        for group in self.groups:
            if group.name == name:
                return group
        if name in self.refused:
            raise ModelError(f"the units of {name!r} cannot be removed: {self.refused[name]}")
        known = ", ".join(group.name for group in self.groups) or "none"
        raise InputError(f"there is no group of units {name!r}; groups are: {known}")

    def split(self, group: UnitGroup) -> tuple[tuple[Stage, ...], Stage, tuple[Stage, ...]]:
        """(what runs before the consumer, the consumer, what runs after it)."""
        for place, stage in enumerate(self.stages):
            if stage.module is not None and stage.name == group.consumer:
                return self.stages[:place], stage, self.stages[place + 1 :]
        raise InputError(f"the chain has no layer {group.consumer!r}")
