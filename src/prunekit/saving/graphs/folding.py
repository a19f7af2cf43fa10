"""Parts of a graph that read no input, worked out once: they often hold what a file cannot name."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from prunekit.errors import ModelError
from prunekit.saving.graphs.operators import operator_name
from prunekit.structure.coupling.captured import module_of
from prunekit.structure.coupling.graph_model import Graph


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

    Raises:
        ModelError: where such a node depends on the inputs or on chance, or is written to.
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
    _check_writes(nodes, gone)
    values = _worked_out(graph, [node for node in nodes if node in gone - idle])
    read = {node: values[node] for node in nodes if node in gone and not gone.issuperset(node.users)}
    for node, value in read.items():
        if not isinstance(value, Tensor):
            raise ModelError(_refusal(node))
    return Folded(frozenset(gone), {node: value.detach().clone() for node, value in read.items()})


def inside(module: fx.GraphModule) -> Folded:
    """The same for a graph that a node calls, in which nothing can be worked out.

    Raises:
        ModelError: where it holds an operator that a saved graph may not hold.
    """
    nodes = list(module.graph.nodes)
    idle = _idle(nodes)
    for node in nodes:
        if _forbidden(node) and node not in idle:
            raise ModelError(_refusal(node))
    return Folded(frozenset(idle), {})


def _forbidden(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node.target) is None


def _idle(nodes: list[fx.Node]) -> set[fx.Node]:
    """Nodes that nothing reads in the end and that write nothing, such as checks of dtypes."""
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        schema = getattr(node.target, "_schema", None)
        writes = schema is not None and schema.is_mutable
        read = node.op not in ("call_function", "get_attr") or not found.issuperset(node.users)
        needed = _forbidden(node) and not str(node.target).startswith("aten._assert")
        if not (read or writes or needed):
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
        made = node.op == "get_attr" and not isinstance(_attribute(graph, node), fx.GraphModule)
        computed = node.op == "call_function" and found.issuperset(node.all_input_nodes)
        if made or (computed and not _random(node)):
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


def _check_writes(nodes: list[fx.Node], gone: set[fx.Node]) -> None:
    """Refuse where something is written in place that is worked out here and used there, or the reverse."""
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        written = node.args[0] if node.args else None
        while isinstance(written, fx.Node) and written.op == "call_function":
            outside = [user for user in written.users if user not in gone and user is not node]
            if (written in gone) != (node in gone) or (node in gone and outside):
                raise ModelError(_refusal(node))
            written = written.args[0] if written.args else None


def _worked_out(graph: Graph, nodes: list[fx.Node]) -> dict[fx.Node, Any]:
    names = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    given = dict(zip(names, graph.signature.inputs, strict=True))
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in nodes:
            if node.op == "placeholder":
                values[node] = graph.constants[given[node][1]]
            elif node.op == "get_attr":
                values[node] = _attribute(graph, node)
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values


def _attribute(graph: Graph, node: fx.Node) -> Any:
    return attrgetter(str(node.target))(graph.module)


def _refusal(node: fx.Node) -> str:
    place = module_of(node)
    where = f" in {place!r}" if place else ""
    name = str(node.target) if "." in str(node.target) else getattr(node.target, "__name__", "")
    return f"the network cannot be saved as a graph: it holds {name!r}{where}, which a file may not name"
