"""Where the outputs of units appear while a network runs: what goes into and comes out of its layers."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from prunekit.errors import ModelError
from prunekit.graph.captured_graph import op_name
from prunekit.graph.chain import Applied, sees_entries
from prunekit.graph.coupling_graph import CouplingGraph, Group
from prunekit.graph.ops import moves, operator_of, spatial

Side = Literal["input", "output"]
Key = tuple[str, int, Side]
"""A tensor that a layer takes or gives: the layer, the number of its call, and which of both."""


@dataclass(frozen=True, eq=False)
class Place:
    """One axis of what a layer takes or gives, and the units along it.

    Attributes:
        module: full name of a layer without layers in it.
        call: which of its calls in one run of the network, from 0.
        side: what it takes, or what it gives.
        axis: the dimension.
        units: (entries,) int64, the unit that each entry belongs to; -1 for none of the group.
        then: what is called as a function on it, whose result is meant; None for nothing.
    """

    module: str
    call: int
    side: Side
    axis: int
    units: Tensor
    then: Applied | None = None

    @property
    def key(self) -> Key:
        """The tensor that it is an axis of."""
        return self.module, self.call, self.side


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Units' values at all their positions, before any pooling, and where derivatives by them come from.

    Attributes:
        place: of the values.
        readers: where `place.then` is needed, what the layers take that is pooled from the values, each with
            the pooling; empty otherwise, as the derivative can be taken at the place itself.
    """

    place: Place
    readers: tuple[tuple[Place, Applied], ...] = ()


@dataclass(frozen=True)
class Call:
    """One call of a layer in the graph of evaluation: the nodes of its input and its output."""

    module: str
    number: int
    takes: fx.Node | None
    gives: fx.Node


def places(calls: Sequence[Call], found: CouplingGraph, group: Group) -> tuple[Place, ...]:
    """What the layers that read the units take, or what those that make them give where none reads them.

    A tensor that several layers read is one place.

    Args:
        calls: of the network's layers, see `calls_of`.
        found: its plan with its graphs.
        group: of the plan.

    Raises:
        ModelError: where no layer of its own takes or gives the units, as within one module for all of
            attention.
    """
    consumers = {member.tensor.rpartition(".")[0] for member in group.consumers}
    producers = {member.tensor.rpartition(".")[0] for member in group.members if member.role == "producer"}
    read = {call.takes: _at(found, group, call, "input") for call in calls if call.module in consumers}
    chosen = [place for each in read.values() for place in each]
    if not chosen:
        chosen = [
            place for call in calls if call.module in producers for place in _at(found, group, call, "output")
        ]
    if not chosen:
        layers = ", ".join(repr(name) for name in sorted(consumers | producers)) or "no layer"
        raise ModelError(
            f"the outputs of the units of {group.name!r} cannot be watched: {layers} takes or gives them in "
            "no call of its own in evaluation mode; use a score of weights, or name the group in `ignore`"
        )
    return tuple(chosen)


def inputs(calls: Sequence[Call], found: CouplingGraph, group: Group) -> tuple[Place, ...]:
    """What the layers that read the units take, in every call of every one of them.

    Args:
        calls: of the network's layers, see `calls_of`.
        found: its plan with its graphs.
        group: of the plan.
    """
    consumers = {member.tensor.rpartition(".")[0] for member in group.consumers}
    taking = [call for call in calls if call.module in consumers]
    return tuple(place for call in taking for place in _at(found, group, call, "input"))


def silences(calls: Sequence[Call], found: CouplingGraph, group: Group) -> tuple[Place, ...]:
    """The same behind the last activation, or other function of single numbers, before pooling and norms."""
    inputs = {(call.module, call.number): call.takes for call in calls}
    chosen: dict[object, Place] = {}
    for place in places(calls, found, group):
        node = inputs[place.module, place.call] if place.side == "input" else None
        while node is not None and not _acts(node):
            passes = operator_of(node).passes_units or _is_pool(node)
            node = node.args[0] if passes and isinstance(node.args[0], fx.Node) else None
        behind = [] if node is None else _behind(calls, found, group, node)
        for each in behind or [place]:
            chosen[(*each.key, each.axis, each.then and each.then.nodes)] = each
    return tuple(chosen.values())


def feature_maps(calls: Sequence[Call], found: CouplingGraph, group: Group) -> tuple[FeatureMap, ...]:
    """The same as `places`, before the pooling that may stand between the units and the layer.

    In relu -> max pool -> flatten -> linear it is the tensor between relu and pool. Norms are not looked
    behind: a unit that is off is 0 behind its norm.
    """
    inputs = {(call.module, call.number): call.takes for call in calls}
    chosen: dict[object, FeatureMap] = {}
    for place in places(calls, found, group):
        pools = _pools(inputs[place.module, place.call]) if place.side == "input" else ()
        entry = pools[0].all_input_nodes[0] if pools else None
        for each in (_behind(calls, found, group, entry) if entry else ()) or [place]:
            key = (*each.key, each.axis, each.then and each.then.nodes)
            readers = chosen[key].readers if key in chosen else ()
            if entry and each.then and all(place.key != other.key for other, _ in readers):
                readers = (*readers, (place, Applied(pools, entry)))
            chosen[key] = FeatureMap(each, readers)
    return tuple(chosen.values())


def _pools(node: fx.Node | None) -> tuple[fx.Node, ...]:
    """The pooling operators in a row that a value is made by, but for its shape, if there are any."""
    while node is not None and (operator_of(node).labels is moves.view or operator_of(node).drops):
        node = node.all_input_nodes[0]
    pools: list[fx.Node] = []
    while node is not None and (_is_pool(node) or (pools and operator_of(node).drops)):
        pools.insert(0, node)
        node = node.all_input_nodes[0]
    return tuple(pools)


def _is_pool(node: fx.Node) -> bool:
    """Whether an operator joins positions to their maximum or mean."""
    if node.target is operator.getitem:  # the maximum of a pair with where it was
        return bool(node.args[1] == 0) and _is_pool(node.all_input_nodes[0])
    record = operator_of(node)
    return op_name(node) == "mean" or (record.labels is spatial.pooled and "pool" in record.name)


def _acts(node: fx.Node) -> bool:
    """Whether an operator is an activation, or another function of single numbers."""
    if node.op != "call_function" or operator_of(node).drops:
        return False
    return operator_of(node).activation or (len(node.all_input_nodes) == 1 and sees_entries(node))


def _behind(calls: Sequence[Call], found: CouplingGraph, group: Group, node: fx.Node) -> list[Place]:
    """What an activation gives: as layers see it, or from what a layer gives by the functions between."""
    taps: dict[fx.Node | None, tuple[Call, Side]] = {call.takes: (call, "input") for call in calls}
    taps |= {call.gives: (call, "output") for call in calls}
    between: list[fx.Node] = []
    before = node
    while before not in taps:
        if not _acts(before) or before.all_input_nodes != [before.args[0]]:
            return []
        between.insert(0, before)
        before = before.all_input_nodes[0]
    then = Applied(tuple(between), before) if between else None
    return [replace(place, then=then) for place in _at(found, group, *taps[before], node)]


@contextmanager
def watched(
    model: nn.Module, wanted: Mapping[Place, Tensor | None], *, unmasked: bool = False
) -> Iterator[dict[Key, Tensor]]:
    """While the network runs once, what is at these places, by their keys.

    Args:
        model: the network.
        wanted: the places, each with (units,) flags of the units that are left, as others are 0 there; None
            where all are.
        unmasked: whether it is shown as the network has it, before units that are off become 0 for the layer,
            so that derivatives by it count everything that reads it, such as a shortcut beside the layer.
    """
    found: dict[Key, Tensor] = {}
    keys = {place.key for place in wanted}
    masks = [(place, _mask(place, kept)) for place, kept in wanted.items() if kept is not None]
    count: dict[str, int] = {}

    def kept(key: Key, value: Tensor) -> Tensor:
        found[key] = value
        for place, mask in masks:
            if place.key == key:
                value = (value.movedim(place.axis, -1) * mask.to(value)).movedim(-1, place.axis)
        if not unmasked:
            found[key] = value
        return value.clone()  # what works in place from here on must not change what was seen

    def before(name: str, module: nn.Module, args: tuple[Any, ...]) -> Any:
        key: Key = (name, count.setdefault(name, 0), "input")
        return (kept(key, args[0]), *args[1:]) if key in keys else None

    def after(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        key: Key = (name, count.setdefault(name, 0), "output")
        count[name] += 1
        return kept(key, output) if key in keys else None

    hooks: list[RemovableHandle] = []
    try:
        for name in {place.module for place in wanted}:
            module = model.get_submodule(name)
            hooks.append(module.register_forward_pre_hook(partial(before, name)))
            hooks.append(module.register_forward_hook(partial(after, name)))
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _mask(place: Place, kept: Tensor) -> Tensor:
    """(entries,): 0 for entries of units that are off."""
    units = place.units.to(kept.device)
    return kept[units.clamp(min=0)] | (units < 0)


def _at(
    found: CouplingGraph, group: Group, call: Call, side: Side, node: fx.Node | None = None
) -> list[Place]:
    """The axes of what a call takes or gives, or of a node computed from it, that have units of the group."""
    node = node or (call.takes if side == "input" else call.gives)
    axes = {} if node is None else axes_of(found, group, node)
    return [Place(call.module, call.number, side, axis, units) for axis, units in axes.items()]


def axes_of(found: CouplingGraph, group: Group, node: fx.Node) -> dict[int, Tensor]:
    """By axis of a node's values that has units of a group: (entries,) the units, -1 for none of it."""
    number = found.plan.groups.index(group)
    axes: dict[int, Tensor] = {}
    for labelling in found.labellings:
        for value in labelling.nodes[0].get(node.name, ()):
            for axis, labels in enumerate(value):
                if (
                    labels is not None
                    and axis not in axes
                    and bool((labelling.group[labels] == number).any())
                ):
                    units = torch.from_numpy(labelling.unit[labels])
                    axes[axis] = units.masked_fill(torch.from_numpy(labelling.group[labels] != number), -1)
    return axes


def calls_of(model: nn.Module, found: CouplingGraph) -> list[Call]:
    """Every call of a layer without layers in it that takes one tensor and gives one, in order."""
    graph = found.graphs[0]
    leaves = {name for name, module in model.named_modules() if name and not any(module.children())}
    together: dict[tuple[str, str], list[fx.Node]] = {}
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if node.op == "call_function" and stack:
            key, (name, *_) = list(stack.items())[-1]
            if name in leaves:
                together.setdefault((str(name), str(key)), []).append(node)
    calls: list[Call] = []
    count: dict[str, int] = {}
    for (name, _), nodes in together.items():
        number = count.setdefault(name, 0)
        count[name] += 1
        given = _given(nodes, graph.tensors)
        outside = [node for node in nodes if any(user not in nodes for user in node.users)]
        if len(outside) == 1:
            calls.append(Call(name, number, given[0] if len(given) == 1 else None, outside[0]))
    return calls


def _given(nodes: Sequence[fx.Node], tensors: Mapping[str, str]) -> list[fx.Node]:
    """What the nodes of a call read of other nodes' values, parameters and buffers apart."""
    found = [before for node in nodes for before in node.all_input_nodes]
    return list(dict.fromkeys(node for node in found if node not in nodes and node.name not in tensors))
