"""A network in the form of its exported graphs, to and from the files of a folder: no pickle, no code.

A graph is written without writes into its arguments (`functional.py`), and without what reads no input, which
is worked out once. It is read with none but harmless operators (`graph_values.py`), each call of which is
checked before one is run (`graph_calls.py`).
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from prunekit.errors import ModelError, shown
from prunekit.graph.captured_graph import (
    Captured,
    GraphModel,
    InputKind,
    OutputKind,
    constant_name,
    holder_of,
    leading_to,
    module_of,
)
from prunekit.graph.conversion import FOLLOWS
from prunekit.graph.free_sizes import same_answer
from prunekit.saving.description import CONSTANT, consistent
from prunekit.saving.functional import functional
from prunekit.saving.graph_calls import MAX_BYTES, MAX_INT, check_calls
from prunekit.saving.graph_values import (
    SIZES,
    argument_types,
    layout_from_json,
    layout_to_json,
    named_operator,
    operator_name,
    value_from_json,
    value_to_json,
)
from prunekit.saving.saved_files import SavedFiles

MAX_NODES = 200_000
"""The most nodes that a graph may have."""

_RESERVED = re.compile(r"(_constant|_graph)[0-9]|__")
"""How names begin that a network of graphs gives to its own."""


def graph_to_files(model: GraphModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What goes into `graph.json`, and the constants for the file of the weights.

    Raises:
        ModelError: where a graph holds something that a file may not name.
    """
    graphs, tensors = [], {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    every = _tensors_of(model)
    for number, graph in enumerate(model.graphs):
        saved, constants = to_json(graph, every, parameters)
        try:
            check_calls(from_json(saved, constants), every, sys.maxsize)
        except ValueError as error:
            raise ModelError(f"the network cannot be saved as a graph: {error}") from None
        graphs.append(saved)
        for name, value in constants.items():
            tensors[f"{number}.{name}{CONSTANT}"] = value.detach().cpu().contiguous().clone()
    constant = {name for name, _ in model.named_buffers() if name.startswith("_constant")}
    persistent = set(model.state_dict(keep_vars=True))
    return {
        "parameters": {
            name: parameter.requires_grad
            for name, parameter in model.named_parameters(remove_duplicate=False)
        },
        "buffers": {
            name: name in persistent
            for name, _ in model.named_buffers(remove_duplicate=False)
            if name not in constant
        },
        "graphs": graphs,
    }, tensors


def graph_from_files(
    files: SavedFiles,
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    max_bytes: int = MAX_BYTES,
) -> GraphModel:
    """The network, with the values of `state`; parameters and buffers are new objects.

    Args:
        files: that hold it.
        state: parameters and buffers by full name, tied ones under each of their names.
        tensors: everything that the file of the weights holds.
        max_bytes: what the tensors that a graph makes may take at any one time.

    Raises:
        DataError: if the file is missing, damaged or was not written by prunekit, or a graph calls what it
            may not.
    """
    saved = files.graph()
    with consistent(files.misfit("graph")):
        holder = nn.Module()
        tied: Mapping[str, str] = files.description.tied
        made: dict[str, Tensor] = {}
        for name, trained in saved["parameters"].items():
            source = tied.get(name, name)
            if source not in made:
                made[source] = nn.Parameter(state[source], requires_grad=bool(trained))
            holder_of(holder, name).register_parameter(name.rpartition(".")[2], made[source])  # type: ignore[arg-type]
        for name, persistent in saved["buffers"].items():
            source = tied.get(name, name)
            value = made.setdefault(source, state[source])
            holder_of(holder, name).register_buffer(
                name.rpartition(".")[2], value, persistent=bool(persistent)
            )
        every = _tensors_of(holder)
        graphs: list[Captured] = []
        if len(saved["graphs"]) > 2:
            raise ValueError("there is one graph for evaluation, and one for training")
        for number, graph in enumerate(saved["graphs"]):
            start = f"{number}."
            constants = {
                name.removeprefix(start).removesuffix(CONSTANT): value
                for name, value in tensors.items()
                if name.startswith(start) and name.endswith(CONSTANT)
            }
            graphs.append(from_json(graph, constants))
            check_calls(graphs[-1], every, max_bytes)
        if not graphs or not _reads(graphs) <= {*saved["parameters"], *saved["buffers"]}:
            raise ValueError("its graphs read parameters that it does not have")
        _check_own_names(every, graphs)
        model = GraphModel(holder, graphs)
        _check_same(model, graphs, every)
        return model


def _reads(graphs: Sequence[Captured]) -> set[str]:
    inputs = [entry for graph in graphs for entry in graph.inputs]
    outputs = [entry for graph in graphs for entry in graph.outputs]
    return {name for kind, name in inputs if kind == "tensor"} | {
        name for kind, name in outputs if kind == "buffer"
    }


def _check_own_names(names: Iterable[str], graphs: Sequence[Captured]) -> None:
    """Refuse names that would take the place of something else in the network."""
    for name in names:
        if hasattr(GraphModel, name.partition(".")[0]) or _RESERVED.match(name):
            raise ValueError(f"no parameter or buffer may be called {shown(name, 80)}")
    constants = [constant_name(number, name) for number, each in enumerate(graphs) for name in each.constants]
    if len(set(constants)) < len(constants):
        raise ValueError("two of its constants have the same name")


def _check_same(model: GraphModel, graphs: Sequence[Captured], every: Mapping[str, Tensor]) -> None:
    """What the network runs on is what its calls were checked with."""
    held = _tensors_of(model)
    wanted = {
        constant_name(number, name): value
        for number, graph in enumerate(graphs)
        for name, value in graph.constants.items()
    }
    for name, value in {**every, **wanted}.items():
        if held.get(name) is not value:
            raise ValueError(f"{shown(name, 80)} is not the network's own")


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


# ---- one graph ---------------------------------------------------------------------------------------------


_INPUTS: tuple[InputKind, ...] = ("tensor", "constant", "user")
_OUTPUTS: tuple[OutputKind, ...] = ("user", "buffer", "other")


def to_json(
    graph: Captured, tensors: Mapping[str, Tensor], trained: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The graph, and the constants that it reads by name.

    Args:
        graph: the graph.
        tensors: parameters and buffers by full name.
        trained: the names of the parameters among them.

    Raises:
        ModelError: where it holds something that a file may not name.
    """
    graph = folded(functional(graph, tensors, trained))
    values = [node.meta.get("val") for node in graph.given]
    dtypes = [each.dtype if isinstance(each, Tensor) else None for each in values]
    return {
        "inputs": [list(entry) for entry in graph.inputs],
        "outputs": [list(output) for output in graph.outputs],
        "shapes": [None if shape is None else list(shape) for shape in graph.shapes],
        "dtypes": [None if dtype is None else value_to_json(dtype, {})["dtype"] for dtype in dtypes],
        "free": [list(axes) for axes in graph.free],
        "values": [None if isinstance(each, Tensor) else _plain(each) for each in values],
        "parameters": [[name, [_plain(each) for each in default]] for name, default in graph.parameters],
        "takes": layout_to_json(graph.takes),
        "gives": layout_to_json(graph.gives),
        **_nodes_to_json(graph.graph),
    }, dict(graph.constants)


def from_json(saved: Mapping[str, Any], constants: Mapping[str, Tensor]) -> Captured:
    """The inverse: nothing of the file is run or imported, and names in it never become code.

    Raises:
        KeyError, TypeError, ValueError: where it is damaged or was written by something else.
    """
    inputs = tuple(_pair(item, _INPUTS) for item in saved["inputs"])
    outputs = tuple(_pair(item, _OUTPUTS) for item in saved["outputs"])
    shapes = [None if shape is None else _shape(shape) for shape in saved["shapes"]]
    dtypes = [None if dtype is None else value_from_json({"dtype": dtype}, []) for dtype in saved["dtypes"]]
    takes, gives = layout_from_json(saved["takes"]), layout_from_json(saved["gives"])
    graph = _graph(saved)
    placeholders = graph.find_nodes(op="placeholder")
    users = sum(kind == "user" for kind, _ in inputs)
    if len(placeholders) != len(inputs) or not users == len(shapes) == len(dtypes) == takes.num_leaves:
        raise ValueError(f"{len(placeholders)} inputs of the graph, {len(inputs)} of its signature")
    if takes.type is not tuple or [each.type for each in takes.children()] != [tuple, dict]:
        raise ValueError("its arguments are not positional and named ones")
    if gives.num_leaves != sum(kind == "user" for kind, _ in outputs):
        raise ValueError("its outputs are not nested as its signature says")
    returned = graph.output_node().args[0]
    if not isinstance(returned, tuple) or len(returned) != len(outputs):
        raise ValueError(f"the graph's outputs are not the {len(outputs)} of its signature")
    read = {name: constants[name] for kind, name in inputs if kind == "constant"}
    parameters = tuple(_parameter(each) for each in saved.get("parameters", []))
    found = Captured(graph, {}, inputs, outputs, read, takes, gives, parameters=parameters)
    values = saved.get("values", [None] * users)
    free = [_shape(axes) for axes in saved.get("free", [[]] * users)]
    for node, shape, dtype, value, axes in zip(found.given, shapes, dtypes, values, free, strict=True):
        node.meta["free"] = axes
        if shape is None:
            node.meta["val"] = value if isinstance(value, _PLAIN) else None
        elif dtype is not None:
            node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
    return found


_PLAIN = (bool, int, float, str, type(None))


def _plain(value: Any) -> Any:
    """A value that JSON holds.

    Raises:
        ModelError: for any other one.
    """
    if not isinstance(value, _PLAIN):
        raise ModelError(f"the network cannot be saved as a graph: an argument is a {type(value).__name__}")
    return value


def _parameter(saved: Any) -> tuple[str, tuple[Any, ...]]:
    name, default = saved
    if not isinstance(name, str) or len(default) > 1 or not all(isinstance(each, _PLAIN) for each in default):
        raise ValueError(f"{str(saved)[:60]!r} is no argument")
    return name, tuple(default)


Kind = TypeVar("Kind", bound=str)


def _pair(item: Any, kinds: Sequence[Kind]) -> tuple[Kind, str]:
    kind, name = item
    if kind not in kinds or not isinstance(name, str):
        raise ValueError(f"{str(item)[:60]!r} is neither of {', '.join(kinds)}")
    return kind, name


def _shape(saved: Any) -> tuple[int, ...]:
    if not isinstance(saved, list) or not all(type(size) is int and 0 <= size <= MAX_INT for size in saved):
        raise ValueError(f"{str(saved)[:60]!r} is no shape of an input")
    return tuple(saved)


def _nodes_to_json(graph: fx.Graph) -> dict[str, Any]:
    """Nodes by their places: first the inputs, then the calls."""
    places = {node: number for number, node in enumerate(graph.nodes)}
    nodes: list[dict[str, Any]] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            nodes.append({"input": True})
        elif node.op == "call_function":
            kwargs = {key: value_to_json(value, places) for key, value in node.kwargs.items()}
            args = [value_to_json(arg, places) for arg in node.args]
            call = {"call": operator_name(node.target), "args": args, "kwargs": kwargs}
            if FOLLOWS in node.meta:
                call["follows"] = value_to_json(node.meta[FOLLOWS], {})["dtype"]
            nodes.append(call)
    return {"nodes": nodes, "returns": value_to_json(graph.output_node().args[0], places)}


def _graph(saved: Mapping[str, Any]) -> fx.Graph:
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    nested: dict[fx.Node, int] = {}
    if len(saved["nodes"]) > MAX_NODES:
        raise ValueError(f"it has {len(saved['nodes']):,} nodes; at most {MAX_NODES:,} are allowed")
    for number, item in enumerate(saved["nodes"]):
        # names are made here: fx writes them into Python code
        if "input" in item:
            nodes.append(graph.placeholder(f"input_{number}"))
        else:
            target = named_operator(item["call"])
            args = tuple(value_from_json(arg, nodes) for arg in item["args"])
            kwargs = {key: value_from_json(value, nodes) for key, value in item["kwargs"].items()}
            if not set(argument_types(target)).issuperset(kwargs):
                raise ValueError(f"{item['call']} takes no argument {sorted(kwargs)}")
            if target is operator.getitem and [type(arg) for arg in args] != [fx.Node, int]:
                raise ValueError("getitem takes the place of a node, and a number")
            nodes.append(graph.call_function(target, args, kwargs))
            if "follows" in item:
                nodes[-1].meta[FOLLOWS] = value_from_json({"dtype": item["follows"]}, [])
            _check_nested(nodes[-1], nested)
    graph.output(value_from_json(saved["returns"], nodes))
    graph.lint()
    return graph


_DEEPEST = 16


def _check_nested(node: fx.Node, nested: dict[fx.Node, int]) -> None:
    """Refuse long chains of arithmetic: products of products of other sizes could be of any length."""
    if node.target in SIZES.values():
        nested[node] = 1 + max((nested.get(each, 0) for each in node.all_input_nodes), default=0)
        if nested[node] > _DEEPEST:
            raise ValueError(f"sizes are computed in more than {_DEEPEST} steps")


# ---- what reads no input -----------------------------------------------------------------------------------


def folded(graph: Captured) -> Captured:
    """The graph with constants in the place of operators that a file may not name, and of all before them.

    What nothing reads is left out, but for random draws. Masks of attention are made so in transformers, by
    functions of PyTorch's own machinery, from nothing but the shapes.

    Args:
        graph: without writes; its nodes are changed.

    Raises:
        ModelError: where such an operator depends on the inputs or on chance.
    """
    nodes, constants, inputs = graph.graph, dict(graph.constants), dict(graph.placeholders)

    def fixed(node: fx.Node) -> bool:
        return inputs[node][0] == "constant" if node in inputs else not _stays(node)

    # a draw that nothing reads, such as that by which layers are dropped, moves the draws behind it
    nodes.eliminate_dead_code(lambda node: node.op != "call_function" or _forbidden(node) or _stays(node))
    before: set[fx.Node] = set()
    for node in filter(_forbidden, nodes.nodes):
        before |= leading_to(node)
        if not all(map(fixed, before)):
            raise ModelError(_refusal(node))
    values: dict[fx.Node, Any] = {}
    for node in [node for node in nodes.nodes if node in before]:
        if node in inputs:
            values[node] = constants[inputs[node][1]]
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
    for node in values:
        if before.issuperset(node.users) or node in inputs:
            continue
        if not isinstance(values[node], Tensor):
            raise ModelError(_refusal(node))
        name = f"folded_{len(inputs)}"
        with nodes.inserting_before(next(iter(nodes.nodes))):
            constant = nodes.placeholder(name)
        inputs[constant], constants[name] = ("constant", name), values[node].detach().clone()
        node.replace_all_uses_with(constant)
    nodes.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or _stays(node))
    for node in nodes.find_nodes(op="placeholder"):
        if inputs[node][0] == "constant" and not node.users:
            nodes.erase_node(node)
    kept = tuple(inputs[node] for node in nodes.find_nodes(op="placeholder"))
    read = {name: constants[name] for kind, name in kept if kind == "constant"}
    return replace(graph, inputs=kept, constants=read)


def _forbidden(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node.target) is None


def _stays(node: fx.Node) -> bool:
    """Whether it draws numbers, or refuses inputs: what stays though nothing reads it."""
    return node.target is same_answer or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _refusal(node: fx.Node) -> str:
    place = module_of(node)
    where = f" in {place!r}" if place else ""
    name = str(node.target) if "." in str(node.target) else getattr(node.target, "__name__", "")
    return f"the network cannot be saved as a graph: it holds {name!r}{where}, which a file may not name"
