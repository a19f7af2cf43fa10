"""Operations in a row, linked to groups of units between the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType

from torch import nn

from prunekit.errors import ModelError
from prunekit.structure.chain import INPUT, Chain, UnitGroup
from prunekit.structure.operations import LAYERS, Kind, Operation


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


def link(operations: Sequence[Operation], *, inputs: bool) -> Chain:
    """The chain that the operations make.

    Raises:
        ModelError: naming the layer whose units cannot be told apart at the next layer; for the model's input
            only if it was asked for.
    """
    groups: list[UnitGroup] = []
    refused: dict[str, str] = {}
    current = _Link(None, None, _Layout.OPEN)
    wrong = ""  # what happened on the way; it counts once a layer follows
    for operation in operations:
        if operation.kind is not Kind.LAYER:
            wrong = wrong or _pass(current, operation)
            continue
        module = operation.stage.module
        assert isinstance(module, LAYERS)
        if current.producer is not None or inputs:
            wrong = wrong or _arrive(current, operation.stage.name, module)
            if wrong:
                raise ModelError(f"{current.label} is no link of a chain: {wrong}")
            if current.refused:
                refused[current.name] = current.refused
            else:
                groups.append(_group(current, operation.stage.name, module))
        current, wrong = _leave(operation.stage.name, module), ""
    if current.producer is None:
        raise ModelError("the model has no linear or convolution layer")
    return Chain(tuple(operation.stage for operation in operations), tuple(groups), MappingProxyType(refused))


def _leave(name: str, module: nn.Module) -> _Link:
    if isinstance(module, nn.Linear):
        return _Link(name, module.out_features, _Layout.FEATURES)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    grouped = f"it is a convolution in {module.groups} groups" if module.groups > 1 else ""
    return _Link(name, module.out_channels, _Layout.CHANNELS, refused=grouped)


def _pass(link: _Link, operation: Operation) -> str:
    """Follow the units through an operation; why that is impossible, or nothing."""
    name = operation.stage.name
    if operation.kind is Kind.SIDE:
        return f"its output feeds {name!r}, which {operation.note}"
    if operation.kind is Kind.POOL:
        if link.layout in (_Layout.FEATURES, _Layout.FLAT):
            return f"its output feeds the pooling {name!r}, which would mix its units"
        link.layout = _Layout.CHANNELS
    elif operation.kind is Kind.FLATTEN:
        _flatten(link, operation)
    elif operation.kind is Kind.NORM:
        return _normalise(link, operation)
    return ""


def _flatten(link: _Link, operation: Operation) -> None:
    if operation.note:
        place = f"{operation.stage.name} with {operation.note} numbers"
        link.fixed = f"forward has {place} written into it: use flatten(1) there"
    known = link.layout is _Layout.CHANNELS or (link.layout is _Layout.OPEN and link.units is not None)
    if known:
        link.layout = _Layout.FLAT
    elif link.layout is _Layout.OPEN:
        link.layout = _Layout.FEATURES  # every number of the input is a unit


def _normalise(link: _Link, operation: Operation) -> str:
    module = operation.stage.module
    channels = int(module.num_features)  # type: ignore[union-attr, arg-type]
    if link.units is None:
        link.units = channels
        if not isinstance(module, nn.BatchNorm1d):
            link.layout = _Layout.CHANNELS
    if channels != link.units and (link.layout is not _Layout.FLAT or channels % link.units):
        return f"it has {link.units} units, the batch norm {operation.stage.name!r} has {channels} channels"
    link.norms.append(operation.stage.name)
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
