"""The propagation through an exported graph, from the parameters' labels to the labels of every node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from prunekit.graph.captured import attributes_of, is_view, is_written, op_name
from prunekit.graph.labels import Propagator, Value, fixed
from prunekit.graph.ops import Operator, operator_of
from prunekit.graph.ops.pointwise import pointwise

_INLINED = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "hints_wrapper")


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
            return record.labels(propagator, *args, **kwargs)
        if is_pointwise(record, target):
            result = pointwise(propagator, record, args, kwargs)
            if is_residual_sum(node):
                for dim in result:
                    propagator.hint("residual stream", dim.labels)
            return result
    except (TypeError, ValueError, IndexError, AttributeError):
        return propagator.unknown("goes through an operator whose rule does not fit")
    return propagator.unknown("goes through an operator without a rule")


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


def is_residual_sum(node: fx.Node) -> bool:
    """Whether a node adds a value and what a layer computed from the same value.

    Sums that are only part of a function, such as x + x^3, and sums of branches are none.
    """
    if op_name(node) != "add":
        return False
    first, second = [*node.args[:2], None, None][:2]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return False
    return _computed_from(first, second) or _computed_from(second, first)


def _computed_from(result: fx.Node, source: fx.Node) -> bool:
    """Whether a layer lies on a way from `source` to `result`."""
    seen: set[tuple[fx.Node, bool]] = set()
    open_nodes = [(result, _is_layer(result))]
    while open_nodes:
        node, layered = open_nodes.pop()
        for before in node.all_input_nodes:
            if before is source and layered:
                return True
            # nodes before the source cannot come from it
            step = (before, layered or _is_layer(before))
            if before.op == "call_function" and before > source and step not in seen:
                seen.add(step)
                open_nodes.append(step)
    return False


def _is_layer(node: fx.Node) -> bool:
    return operator_of(node).mixes
