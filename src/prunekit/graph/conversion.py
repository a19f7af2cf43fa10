"""Types and devices that a graph holds, when its network is converted: `to`, `half`, `bfloat16`, `cuda`.

A graph holds as constants what the network's code reads off its inputs: `zeros(n, dtype=x.dtype)` is recorded
as `zeros(n, dtype=torch.float32)`. Every device becomes the network's new one. A type does where the same
network records another one when it is itself of another type; `softmax(x, dtype=torch.float32)` stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.errors import InputError, ModelError

FOLLOWS = "follows"
"""The key, in a node's `meta`, of the types among its arguments that follow the network's."""


@dataclass(frozen=True)
class Placement:
    """Type and device of a network: those of the first of its tensors that holds real numbers."""

    dtype: torch.dtype
    device: torch.device


def placement(model: nn.Module) -> Placement | None:
    """Where a network is; None for one without real numbers."""
    every = (*model.parameters(), *model.buffers())
    return next((Placement(each.dtype, each.device) for each in every if each.is_floating_point()), None)


def follow(module: fx.GraphModule, before: Placement, after: Placement) -> None:
    """Let a graph, and the graphs that it calls, go with a network that was converted."""
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        for node in part.graph.nodes:
            changed: dict[Any, Any] = {before.device: after.device}
            if node.meta.get(FOLLOWS) == before.dtype:
                changed[before.dtype] = node.meta[FOLLOWS] = after.dtype
            _replace(node, changed)
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, Tensor) and value.dtype == before.dtype:
                node.meta["val"] = value.to(after.dtype)
        part.recompile()


def _replace(node: fx.Node, changed: dict[Any, Any]) -> None:
    def replaced(value: Any) -> Any:
        return changed.get(value, value) if isinstance(value, (torch.dtype, torch.device)) else value

    node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), replaced)


def mark_types(
    graphs: Sequence[fx.Graph],
    model: nn.Module,
    graphs_in: Callable[[torch.dtype, torch.dtype], Sequence[fx.Graph]],
) -> None:
    """Write down which types in a network's graphs are its own, by recording it in another type.

    Args:
        graphs: of the network, or made from such by taking something out; their nodes' `meta` is changed.
        model: the network.
        graphs_in: records a copy of it, in which the first of two types is the second. Where it cannot,
            nothing is written down.
    """
    here = placement(model)
    if here is None or not any(_types(node) for graph in graphs for node in graph.nodes):
        return
    other = torch.float32 if here.dtype == torch.float64 else torch.float64
    try:
        recorded = graphs_in(here.dtype, other)
    except (InputError, ModelError, RuntimeError):
        return
    for graph, there in zip(graphs, recorded, strict=False):
        named = {node.name: node for node in there.nodes}
        for node in graph.nodes:
            twin_node = named.get(node.name)
            if twin_node is None or node.op != twin_node.op or node.target != twin_node.target:
                continue
            if here.dtype in _types(node) and other in _types(twin_node):
                node.meta[FOLLOWS] = here.dtype


def _types(node: fx.Node) -> set[torch.dtype]:
    found: set[torch.dtype] = set()

    def note(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            found.add(value)
        return value

    if node.op == "call_function":
        fx.node.map_aggregate((node.args, node.kwargs), note)
    return found
