"""Which sums are residual: something is added to what a layer computed from it."""

from __future__ import annotations

import torch
from torch import fx

from prunekit.graph.ops import operator_of


def is_residual_sum(node: fx.Node) -> bool:
    """Whether a node adds a value and what a layer computed from the same value.

    Sums that are only part of a function, such as x + x^3, and sums of branches are none.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.overloadpacket.__name__ not in {"add", "add_"}:
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
