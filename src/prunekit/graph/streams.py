"""Residual streams: the sums of a graph that add to a value what a layer computed from the same value."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import fx

from prunekit.graph.captured_graph import argument, op_name
from prunekit.graph.labels import position
from prunekit.graph.ops import operator_of

_SUMS = frozenset({"add", "sub", "rsub", "subtract", "lerp", "addcmul", "addcdiv"})
_SCALES = frozenset({"mul", "multiply", "div", "divide", "true_divide", "neg"})
_PASSED = frozenset(
    {"to", "_to_copy", "type_as", "float", "double", "half", "clone", "contiguous", "alias", "detach"}
    | {"permute", "transpose", "swapaxes", "movedim", "t", "view", "reshape", "flatten", "unflatten"}
    | {"unsqueeze", "squeeze", "roll", "flip"}
)


def is_residual_sum(node: fx.Node, constants: Collection[fx.Node] = ()) -> bool:
    """Whether a node adds, takes away or mixes in what a layer computed from the same value.

    The value may come scaled by a constant, cast, dropped out, moved, pooled or interpolated. Sums that are
    only part of a function, such as x + x^3, and sums of branches are none.

    Args:
        node: of a graph.
        constants: the nodes that do not depend on the network's input.
    """
    terms = _terms(node)
    return any(
        _computed_from(other, source)
        for place, term in enumerate(terms)
        for source in _passed_on(term, constants)
        if source not in constants
        for other in (*terms[:place], *terms[place + 1 :])
    )


def _terms(node: fx.Node) -> list[fx.Node]:
    """What a node adds up entry by entry; nothing where it does something else."""
    name, terms = op_name(node), list(node.args)
    if name in ("sum", "mean") and isinstance(node.args[0], fx.Node):  # over what was stacked for it
        stack = node.args[0]
        rank = len(stack.meta["val"].shape) if op_name(stack) == "stack" else 0
        over, axis = argument(node, "dim"), argument(stack, "dim") if rank else 0
        over = [over] if isinstance(over, int) else over
        if not rank or not over or [position(each, rank) for each in over] != [position(axis, rank)]:
            return []
        terms = list(stack.args[0])  # type: ignore[arg-type]
    elif name not in _SUMS:
        return []
    return [each for each in terms if isinstance(each, fx.Node)]


def _passed_on(node: fx.Node, constants: Collection[fx.Node]) -> Iterator[fx.Node]:
    """A value, and those before it of which it is a scaled, cast, moved or interpolated copy."""
    while True:
        yield node
        if node.op != "call_function":
            return
        record, name = operator_of(node), op_name(node)
        before = [each for each in node.all_input_nodes if each not in constants]
        same = name in _SCALES or name in _PASSED or record.drops or "pool" in name or "upsample" in name
        if not same or len(before) != 1:
            return
        (node,) = before


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
