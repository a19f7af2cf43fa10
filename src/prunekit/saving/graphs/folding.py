"""Parts of a graph that read no input, worked out once: they often hold what a file cannot name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunekit.errors import ModelError
from prunekit.graph.captured import module_of
from prunekit.graph.graph_model import Graph
from prunekit.saving.graphs.operators import operator_name


@dataclass(frozen=True)
class Folded:
    """Nodes that are left out of a saved graph.

    Attributes:
        gone: the nodes.
        values: of those that others read.
    """

    gone: frozenset[fx.Node]
    values: dict[fx.Node, Tensor]


def folded(graph: Graph) -> Folded:
    """Work out the nodes with operators that a saved graph may not hold, with all that leads to them.

    Left out, too, is what nothing reads. Masks of attention are made so in transformers, by functions of
    PyTorch's own machinery, from nothing but the shapes.

    Args:
        graph: without writes.

    Raises:
        ModelError: where such a node depends on the inputs or on chance.
    """
    nodes = list(graph.module.graph.nodes)
    fixed = _fixed(graph, nodes)
    idle = _idle(nodes)
    gone = set(idle)
    for node in nodes:
        if _forbidden(node) and node not in gone:
            if node not in fixed:
                raise ModelError(_refusal(node))
            gone |= _ancestors(node)
    values = _worked_out(graph, [node for node in nodes if node in gone - idle])
    read = {node: values[node] for node in nodes if node in gone and not gone.issuperset(node.users)}
    for node, value in read.items():
        if not isinstance(value, Tensor):
            raise ModelError(_refusal(node))
    return Folded(frozenset(gone), {node: value.detach().clone() for node, value in read.items()})


def _forbidden(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node.target) is None


def _idle(nodes: list[fx.Node]) -> set[fx.Node]:
    """Nodes that nothing reads in the end."""
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        read = node.op != "call_function" or not found.issuperset(node.users)
        if not (read or _forbidden(node)):
            found.add(node)
    return found


def _fixed(graph: Graph, nodes: list[fx.Node]) -> set[fx.Node]:
    """Nodes whose value is the same for all inputs, parameters and buffers."""
    placeholders = [node for node in nodes if node.op == "placeholder"]
    found = {
        node
        for node, (kind, _) in zip(placeholders, graph.signature.inputs, strict=True)
        if kind == "constant"
    }
    for node in nodes:
        computed = node.op == "call_function" and found.issuperset(node.all_input_nodes)
        if computed and not _random(node):
            found.add(node)
    return found


def _random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, open_nodes = {node}, [node]
    while open_nodes:
        for before in open_nodes.pop().all_input_nodes:
            if before not in found:
                found.add(before)
                open_nodes.append(before)
    return found


def _worked_out(graph: Graph, nodes: list[fx.Node]) -> dict[fx.Node, Any]:
    names = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    given = dict(zip(names, graph.signature.inputs, strict=True))
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in nodes:
            if node.op == "placeholder":
                values[node] = graph.constants[given[node][1]]
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values


def _refusal(node: fx.Node) -> str:
    place = module_of(node)
    where = f" in {place!r}" if place else ""
    name = str(node.target) if "." in str(node.target) else getattr(node.target, "__name__", "")
    return f"the network cannot be saved as a graph: it holds {name!r}{where}, which a file may not name"
