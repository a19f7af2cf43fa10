"""A chain of layers: its operations in order, and the units that its layers hand to each other.

`chain_view.py` reads one from a network; here is what it is, and how operations in a row are linked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType

from torch import nn

from prunekit.errors import InputError, ModelError
from prunekit.graph.chain_stages import Kind, Stage
from prunekit.graph.groups import INPUT
from prunekit.graph.rows import LAYERS


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


class _Layout(Enum):
    """Where the units are: OPEN is an input whose shape is not known yet."""

    OPEN = auto()
    CHANNELS = auto()  # the second dimension, positions behind it
    FLAT = auto()  # the second dimension, each unit as neighbouring numbers, one for each position
    FEATURES = auto()  # the last dimension


@dataclass
class _Link:
    """The units between two layers while their way is followed."""

    producer: str | None
    units: int | None
    layout: _Layout
    norms: list[str] = field(default_factory=list)
    refused: str = ""
    fixed: str = ""

    @property
    def name(self) -> str:
        return INPUT if self.producer is None else self.producer

    @property
    def label(self) -> str:
        return "the model's input" if self.producer is None else f"layer {self.producer!r}"


def link(stages: Sequence[Stage], *, inputs: bool) -> Chain:
    """The chain that operations in a row make.

    Raises:
        ModelError: naming the layer whose units cannot be told apart at the next layer; for the model's input
            only if it was asked for.
    """
    groups: list[UnitGroup] = []
    refused: dict[str, str] = {}
    current = _Link(None, None, _Layout.OPEN)
    wrong = ""  # what happened on the way; it counts once a layer follows
    for stage in stages:
        if stage.kind is not Kind.LAYER:
            wrong = wrong or _pass(current, stage)
            continue
        module = stage.module
        assert isinstance(module, LAYERS)
        if current.producer is not None or inputs:
            wrong = wrong or _arrive(current, stage.name, module)
            if wrong:
                raise ModelError(f"{current.label} is no link of a chain: {wrong}")
            if current.refused:
                refused[current.name] = current.refused
            else:
                groups.append(_group(current, stage.name, module))
        current, wrong = _leave(stage.name, module), ""
    if current.producer is None:
        raise ModelError("the model has no linear or convolution layer")
    return Chain(tuple(stages), tuple(groups), MappingProxyType(refused))


def _leave(name: str, module: nn.Module) -> _Link:
    if isinstance(module, nn.Linear):
        return _Link(name, module.out_features, _Layout.FEATURES)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    grouped = f"it is a convolution in {module.groups} groups" if module.groups > 1 else ""
    return _Link(name, module.out_channels, _Layout.CHANNELS, refused=grouped)


def _pass(link: _Link, stage: Stage) -> str:
    """Follow the units through an operation; why that is impossible, or nothing."""
    name = stage.name
    if stage.kind is Kind.SIDE:
        return f"its output feeds {name!r}, which {stage.note}"
    if stage.kind is Kind.POOL:
        if link.layout in (_Layout.FEATURES, _Layout.FLAT):
            return f"its output feeds the pooling {name!r}, which would mix its units"
        link.layout = _Layout.CHANNELS
    elif stage.kind is Kind.FLATTEN:
        _flatten(link, stage)
    elif stage.kind is Kind.NORM:
        return _normalise(link, stage)
    return ""


def _flatten(link: _Link, stage: Stage) -> None:
    if stage.note:
        place = f"{stage.name} with {stage.note} numbers"
        link.fixed = f"forward has {place} written into it: use flatten(1) there"
    known = link.layout is _Layout.CHANNELS or (link.layout is _Layout.OPEN and link.units is not None)
    if known:
        link.layout = _Layout.FLAT
    elif link.layout is _Layout.OPEN:
        link.layout = _Layout.FEATURES  # every number of the input is a unit


def _normalise(link: _Link, stage: Stage) -> str:
    module = stage.module
    channels = int(module.num_features)  # type: ignore[union-attr, arg-type]
    if link.units is None:
        link.units = channels
        if not isinstance(module, nn.BatchNorm1d):
            link.layout = _Layout.CHANNELS
    if channels != link.units and (link.layout is not _Layout.FLAT or channels % link.units):
        return f"it has {link.units} units, the batch norm {stage.name!r} has {channels} channels"
    link.norms.append(stage.name)
    return ""


def _arrive(link: _Link, name: str, module: nn.Module) -> str:
    """Check that the units can be told apart in the next layer's inputs; why not, or nothing."""
    if isinstance(module, nn.Linear):
        inputs = module.in_features
        if link.layout is _Layout.CHANNELS:
            return f"{name!r} reads its positions, not its units: flatten its output first"
        if link.layout is _Layout.FLAT and link.units is None:
            return f"its channels cannot be told from the shape of {name!r}"
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        inputs = module.in_channels
        if link.layout in (_Layout.FLAT, _Layout.FEATURES):
            return f"its output is no image any more where the convolution {name!r} reads it"
        if module.groups > 1:
            link.refused = link.refused or f"{name!r} reads them in {module.groups} groups"
    link.units = inputs if link.units is None else link.units
    if inputs != link.units and (link.layout is not _Layout.FLAT or inputs % link.units):
        return f"it has {link.units} units, {name!r} reads {inputs}"
    return ""


def _group(link: _Link, consumer: str, module: nn.Module) -> UnitGroup:
    assert link.units is not None
    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    return UnitGroup(
        name=link.name,
        units=link.units,
        producer=link.producer,
        norms=tuple(link.norms),
        consumer=consumer,
        repeat=int(inputs) // link.units,  # type: ignore[arg-type]
        fixed=link.fixed,
    )
