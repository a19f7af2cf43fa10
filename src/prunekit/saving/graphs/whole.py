"""A network's graphs as JSON, and their constants as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from prunekit.saving.graphs.folding import Folded, folded, inside
from prunekit.saving.graphs.layout import layout_from_json, layout_to_json
from prunekit.saving.graphs.operators import keyword_names, named_operator, operator_name
from prunekit.saving.graphs.values import value_from_json, value_to_json
from prunekit.structure.coupling.graph_model import Graph
from prunekit.structure.coupling.signature import Signature

_INPUTS, _OUTPUTS = ("tensor", "constant", "user"), ("user", "buffer", "other")


def to_json(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The graph, and the constants that it reads by name.

    Raises:
        ModelError: where it holds something that a file may not name.
    """
    found = folded(graph)
    signature = graph.signature
    given = iter(signature.inputs)
    inputs: list[list[str]] = []
    constants: dict[str, Tensor] = {}
    for node in graph.module.graph.nodes:
        entry = next(given) if node.op == "placeholder" else None
        if node in found.values:
            entry = ("constant", f"folded_{len(constants)}")
            constants[entry[1]] = found.values[node]
        elif node in found.gone or entry is None:
            continue
        elif entry[0] == "constant":
            constants[entry[1]] = graph.constants[entry[1]]
        inputs.append(list(entry))
    return {
        "inputs": inputs,
        "outputs": [list(output) for output in signature.outputs],
        "shapes": [None if shape is None else list(shape) for shape in signature.shapes],
        "takes": layout_to_json(signature.takes),
        "gives": layout_to_json(signature.gives),
        **_nodes_to_json(graph.module, found),
    }, constants


def from_json(saved: Mapping[str, Any], constants: Mapping[str, Tensor]) -> Graph:
    """The inverse: nothing of the file is run or imported, and names in it never become code.

    Raises:
        KeyError, TypeError, ValueError: where it is damaged or was written by something else.
    """
    inputs = tuple(_pair(item, _INPUTS) for item in saved["inputs"])
    shapes = tuple(None if shape is None else tuple(map(int, shape)) for shape in saved["shapes"])
    signature = Signature(
        inputs,
        tuple(_pair(item, _OUTPUTS) for item in saved["outputs"]),
        shapes,
        layout_from_json(saved["takes"]),
        layout_from_json(saved["gives"]),
    )
    module = _module(saved)
    placeholders = sum(node.op == "placeholder" for node in module.graph.nodes)
    users = sum(kind == "user" for kind, _ in inputs)
    if placeholders != len(inputs) or not users == len(shapes) == signature.takes.num_leaves:
        raise ValueError(f"{placeholders} inputs of the graph, {len(inputs)} of its signature")
    if signature.takes.type is not tuple or [c.type for c in signature.takes.children()] != [tuple, dict]:
        raise ValueError("its arguments are not positional and named ones")
    returned = list(module.graph.nodes)[-1].args[0]
    if not isinstance(returned, tuple) or len(returned) != len(signature.outputs):
        raise ValueError(f"the graph's outputs are not the {len(signature.outputs)} of its signature")
    return Graph(signature, module, {name: constants[name] for kind, name in inputs if kind == "constant"})


def _pair(item: Any, kinds: Sequence[str]) -> tuple[str, str]:
    kind, name = item
    if kind not in kinds or not isinstance(name, str):
        raise ValueError(f"{str(item)[:60]!r} is neither of {', '.join(kinds)}")
    return kind, name


def _nodes_to_json(module: fx.GraphModule, found: Folded) -> dict[str, Any]:
    places: dict[fx.Node, int] = {}
    nodes: list[dict[str, Any]] = []
    returns: Any = None
    for node in module.graph.nodes:
        if node.op == "output":
            returns = value_to_json(node.args[0], places)
            continue
        if node in found.gone and node not in found.values:
            continue
        places[node] = len(nodes)
        if node.op == "placeholder" or node in found.values:
            nodes.append({"input": True})
        elif node.op == "get_attr":
            inner = getattr(module, str(node.target))
            nodes.append({"graph": _nodes_to_json(inner, inside(inner))})
        else:
            kwargs = {key: value_to_json(value, places) for key, value in node.kwargs.items()}
            args = [value_to_json(arg, places) for arg in node.args]
            nodes.append({"call": operator_name(node.target), "args": args, "kwargs": kwargs})
    return {"nodes": nodes, "returns": returns}


def _module(saved: Mapping[str, Any]) -> fx.GraphModule:
    root, graph = nn.Module(), fx.Graph()
    nodes: list[fx.Node] = []
    for number, item in enumerate(saved["nodes"]):
        # names are made here: fx writes them into Python code
        if "input" in item:
            nodes.append(graph.placeholder(f"input_{number}"))
        elif "graph" in item:
            root.add_module(f"inner_{number}", _module(item["graph"]))
            nodes.append(graph.get_attr(f"inner_{number}"))
        else:
            target = named_operator(item["call"])
            args = tuple(value_from_json(arg, nodes) for arg in item["args"])
            kwargs = {key: value_from_json(value, nodes) for key, value in item["kwargs"].items()}
            if not keyword_names(target).issuperset(kwargs):
                raise ValueError(f"{item['call']} takes no argument {sorted(kwargs)}")
            nodes.append(graph.call_function(target, args, kwargs))
    graph.output(value_from_json(saved["returns"], nodes))
    graph.lint()
    return fx.GraphModule(root, graph)
