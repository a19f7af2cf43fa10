"""The propagation of labels through all graphs of a network, until every cut leaves something to take out.

Labels start at the parameters, and the records of operators move them from node to node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunekit.graph.capture import tensors_of
from prunekit.graph.captured_graph import Captured, attributes_of, is_view, is_written
from prunekit.graph.coupling_graph import Features
from prunekit.graph.labels import (
    Classes,
    Dim,
    Ints,
    Labels,
    Propagator,
    Role,
    SplitPolicy,
    SplitSite,
    Value,
    fixed,
    frozen_rows,
)
from prunekit.graph.ops import Operator, operator_of
from prunekit.graph.ops.pointwise import pointwise
from prunekit.graph.streams import is_residual_sum

_INLINED = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "hints_wrapper")
# each round drops at least one way to cut an axis; more rounds than this mean that something is wrong
_ROUNDS = 200

FEATURES = ""
"""Stands for the network's input in the place of a parameter's name, which is never empty."""

PARAMETRIZED = (
    "it is computed by a parametrization, such as a spectral norm or the older torch.nn.utils.weight_norm, "
    "which must be removed first, or a mask, which torch.nn.utils.prune.remove makes permanent"
)


@dataclass(frozen=True)
class LabelledAxis:
    """The labels of one axis of one parameter or buffer: `start`, `start` + 1, ..."""

    tensor: str
    dim: int
    start: int
    size: int


@dataclass(frozen=True)
class Propagation:
    """What the labels are once they went through all graphs.

    Attributes:
        blocks: the axes of the parameters and buffers that are used, by their labels.
        propagator: roles, kinds and norms that were seen, and the labels of every node.
        classes: the labels after joining.
        nodes: for each graph the labels of each node's axes, by the node's name; several values in a row.
    """

    blocks: tuple[LabelledAxis, ...]
    propagator: Propagator
    classes: Classes
    nodes: tuple[dict[str, tuple[tuple[Ints | None, ...], ...]], ...]

    def role(self, block: LabelledAxis) -> Role:
        """What an axis is used for."""
        return self.propagator.roles.get((block.tensor, block.dim), "along")


def analysed(
    model: nn.Module,
    graphs: Sequence[Captured],
    ignored: dict[str, str],
    *,
    policy: SplitPolicy,
    features: Features | None = None,
) -> Propagation:
    """The propagation in which no split is known to leave nothing.

    Args:
        model: the network.
        graphs: as exported.
        ignored: parameters and buffers that must not change, with the reason.
        policy: along which part an axis that is split is cut.
        features: of the network's input, if they are to be units, too.
    """
    rejected: set[tuple[SplitSite, int]] = set()
    for _ in range(_ROUNDS):
        found = _propagated(model, graphs, ignored, rejected, policy, features)
        more = _rejected_splits(found) - rejected
        if not more:  # nothing new is to blame
            break
        rejected |= more
    return found


def _rejected_splits(found: Propagation) -> set[tuple[SplitSite, int]]:
    """The cuts that leave nothing.

    Of those that hang together the first may be to blame for all: only those go that cut the same way, as
    queries and keys do, or evaluation and training.
    """
    rejected: set[tuple[SplitSite, int]] = set()
    ways: dict[int, tuple[object, int]] = {}
    for choice in found.propagator.choices:
        if not frozen_rows(choice.labels, found.classes):
            continue
        roots = set(found.classes.root[choice.labels].tolist()) - {0}
        way = (_kind_of_cut(choice.site), choice.candidate)
        before = {ways[found_root] for found_root in roots if found_root in ways}
        if not before or way in before:
            rejected.add((choice.site, choice.candidate))
            before.add(way)
        for found_root in roots:
            ways.setdefault(found_root, min(before, key=str))
    return rejected


def _propagated(
    model: nn.Module,
    graphs: Sequence[Captured],
    ignored: dict[str, str],
    rejected: set[tuple[SplitSite, int]],
    policy: SplitPolicy,
    features: Features | None,
) -> Propagation:
    labels = Labels()
    used = _used(graphs)
    given = None if features is None else labels.new(features.size)
    values, blocks = _labelled(model, used, labels)
    if given is not None:
        blocks.insert(0, LabelledAxis(FEATURES, 0, int(given[0]), len(given)))
    for name, reason in ignored.items():
        for dim in values.get(name, ()):
            labels.freeze(dim.labels, reason)
    propagator = Propagator(labels, policy, rejected)
    for name, reason in ignored.items():
        if reason == PARAMETRIZED and values.get(name, ()):
            propagator.role(values[name][0], "producer")
    nodes = []
    for part, graph in enumerate(graphs):
        propagator.part, propagator.env = part, {}
        propagator.known = {} if features is None or given is None else features.known(graph, given)
        propagator.constants.update(node for node in graph.placeholders if node.name in graph.tensors)
        outputs = propagate(propagator, graph.graph, graph.named, _entry(graph, values))
        propagator.node = None
        for (kind, _), value in zip(graph.outputs, outputs, strict=True):
            for dim in value if isinstance(value, tuple) else ():
                what = "the network's output" if kind != "buffer" else "written to a buffer"
                labels.freeze(dim.labels, f"is {what} in training" if part else f"is {what}")
        nodes.append({propagator.names[node]: _axes(value) for node, value in propagator.env.items()})
    return Propagation(tuple(blocks), propagator, labels.classes(), tuple(nodes))


def _axes(value: Any) -> tuple[tuple[Ints | None, ...], ...]:
    if isinstance(value, tuple):
        return (tuple(dim.labels for dim in value),)
    if isinstance(value, list):
        return tuple(axes for item in value for axes in _axes(item))
    return ()


def _used(graphs: Sequence[Captured]) -> list[str]:
    """Names of the parameters and buffers that some graph reads, in the order of the graphs."""
    found: dict[str, None] = {}
    for graph in graphs:
        for node in graph.placeholders:
            if node.users and node.name in graph.tensors:
                found[graph.tensors[node.name]] = None
    return list(found)


def _labelled(
    model: nn.Module, names: Sequence[str], labels: Labels
) -> tuple[dict[str, Value], list[LabelledAxis]]:
    tensors = tensors_of(model)
    values: dict[str, Value] = {}
    blocks: list[LabelledAxis] = []
    for name in names:
        tensor = tensors[name]
        if not tensor.is_floating_point():
            values[name] = fixed(tensor.shape)
            continue
        dims = []
        for dim, size in enumerate(tensor.shape):
            found = labels.new(size) if size > 1 else None
            if found is not None:
                blocks.append(LabelledAxis(name, dim, int(found[0]), size))
            dims.append(Dim(size, found, zero=True, origin=(name, dim)))
        values[name] = tuple(dims)
    return values, blocks


def _entry(graph: Captured, values: dict[str, Value]) -> Callable[[fx.Node, int], Any]:
    def entry(node: fx.Node, _: int) -> Any:
        name = graph.tensors.get(node.name)
        if name is not None:
            return values.get(name, ())
        val = node.meta.get("val")
        return fixed(val.shape) if isinstance(val, torch.Tensor) else None

    return entry


def positions(found: Propagation) -> tuple[Ints, Ints, Ints]:
    """For all labels of the blocks, in order: the label, the number of its block and its index there."""
    sizes = np.array([block.size for block in found.blocks], dtype=np.int64)
    starts = np.array([block.start for block in found.blocks], dtype=np.int64)
    number = np.repeat(np.arange(sizes.size), sizes)
    offset = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return starts[number] + offset, number, offset


def _kind_of_cut(site: SplitSite) -> object:
    tag = site[-1]
    return tag[-1] if isinstance(tag, tuple) else tag


# ---- one graph, node by node -----------------------------------------------------------------------------


def propagate(
    propagator: Propagator, graph: fx.Graph, named: Mapping[str, Any], entry: Callable[[fx.Node, int], Any]
) -> Any:
    """Take every node of a graph in turn; gives what is known of the outputs.

    Args:
        propagator: the state, which is changed.
        graph: the graph.
        named: what its `get_attr` nodes name.
        entry: what is known of a placeholder, by the node and its number.
    """
    number = 0
    for node in graph.nodes:
        propagator.node = node
        propagator.names[node] = f"{propagator.prefix}{node.name}"
        if node.op == "placeholder":
            propagator.env[node] = propagator.known.get(node) or entry(node, number)
            number += 1
        elif node.op == "get_attr":
            value = named[str(node.target)]
            propagator.env[node] = fixed(value.shape) if isinstance(value, torch.Tensor) else value
        elif node.op == "output":
            found = fx.node.map_arg(node.args[0], propagator.env.get)
            return list(found) if isinstance(node.args[0], (list, tuple)) else found
        else:
            propagator.env[node] = propagator.known.get(node) or _called(propagator, node)
            if propagator.constants.issuperset(node.all_input_nodes):
                propagator.constants.add(node)
    return None


def _called(propagator: Propagator, node: fx.Node) -> Any:
    if node.target is operator.getitem:
        whole, index = node.args
        known = propagator.env.get(whole) if isinstance(whole, fx.Node) else None
        if isinstance(known, list) and isinstance(index, int):
            return known[index]
        return propagator.unknown("is taken out of something")
    name = str(node.target)
    if any(word in name for word in _INLINED):
        return _inlined(propagator, node)
    val = node.meta.get("val")
    if val is None or not _tensors(val):
        if propagator.values([node.args, node.kwargs]) and not name.startswith(("aten._assert", "aten.sym_")):
            propagator.unknown("has no rule for what comes out and")
        return None
    result = _ruled(propagator, node)
    if not _fits(result, val):
        result = propagator.unknown("goes through an operator whose rule does not fit")
    _written_in_place(propagator, node, result)
    return result


def _ruled(propagator: Propagator, node: fx.Node) -> Any:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return propagator.unknown("goes through an operator without a rule")
    record = operator_of(node)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), propagator.env.get)
    try:
        if record.labels is not None:
            result = record.labels(propagator, *args, **kwargs)
        elif is_pointwise(record, target):
            result = pointwise(propagator, record, args, kwargs)
        else:
            return propagator.unknown("goes through an operator without a rule")
    except (TypeError, ValueError, IndexError, AttributeError):
        return propagator.unknown("goes through an operator whose rule does not fit")
    if isinstance(result, tuple) and is_residual_sum(node, propagator.constants):
        for dim in result:
            propagator.hint("residual stream", dim.labels)
    return result


def is_pointwise(record: Operator, *targets: torch._ops.OpOverload) -> bool:
    """Whether PyTorch says so, of the operator or, where it writes in place, of the one that does not."""
    plain = getattr(torch.ops.aten, record.name, None)
    overloads = [getattr(plain, each) for each in plain.overloads()] if plain is not None else []
    return record.pointwise or any(torch.Tag.pointwise in each.tags for each in [*targets, *overloads])


def _inlined(propagator: Propagator, node: fx.Node) -> Any:
    inner = next(
        (index for index, arg in enumerate(node.args) if isinstance(propagator.env.get(arg), fx.GraphModule)),  # type: ignore[arg-type]
        None,
    )
    if inner is None:
        return propagator.unknown("goes through an operator without a rule")
    module = propagator.env[node.args[inner]]  # type: ignore[index]
    given = fx.node.map_arg(node.args[inner + 1 :], propagator.env.get)
    inside = [each for each in module.graph.nodes if each.op == "placeholder"]
    for each, arg in zip(inside, node.args[inner + 1 :], strict=True):
        if not isinstance(arg, fx.Node) or arg in propagator.constants:
            propagator.constants.add(each)
    outer, propagator.prefix = propagator.prefix, f"{propagator.prefix}{node}/"
    named = attributes_of(module.graph, module)
    result = propagate(propagator, module.graph, named, lambda _, number: given[number])
    propagator.prefix, propagator.node = outer, node
    return result


def _tensors(val: Any) -> bool:
    if isinstance(val, (list, tuple)):
        return any(_tensors(item) for item in val)
    return isinstance(val, torch.Tensor)


def _fits(result: Any, val: Any) -> bool:
    if isinstance(val, torch.Tensor):
        return isinstance(result, tuple) and [dim.size for dim in result] == list(val.shape)
    if isinstance(val, (list, tuple)):
        return (
            isinstance(result, list)
            and len(result) == len(val)
            and all(_fits(one, other) for one, other in zip(result, val, strict=True))
        )
    return True


def _written_in_place(propagator: Propagator, node: fx.Node, result: Any) -> None:
    """What an operator writes into its first argument is seen by all that read it or its base later."""
    written = node.args[0] if is_written(node) else None
    if not isinstance(written, fx.Node):
        return
    known = propagator.env.get(written)
    if isinstance(known, tuple) and isinstance(result, tuple) and len(known) == len(result):
        propagator.env[written] = result
    base = written
    while (
        isinstance(base, fx.Node)
        and base.op == "call_function"
        and base.args
        and isinstance(base.args[0], fx.Node)
    ):
        base = base.args[0]
        below = propagator.env.get(base)
        if isinstance(below, tuple):
            propagator.env[base] = _not_zero(below)
        elif isinstance(below, list):
            propagator.env[base] = [
                _not_zero(value) if isinstance(value, tuple) else value for value in below
            ]
        if not (is_view(base) or is_written(base)):
            break


def _not_zero(value: Value) -> Value:
    return tuple(dim._replace(zero=False) for dim in value)
