"""A network's graphs of operators: their nodes, and a module that runs them with the network's parameters."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunekit.errors import InputError
from prunekit.graph.conversion import FOLLOWS, follow, placement
from prunekit.graph.size_run import SizeUses

InputKind = Literal["tensor", "constant", "user"]
OutputKind = Literal["user", "buffer", "other"]
Run = Callable[[int, fx.GraphModule, list[Any]], Any]


@dataclass(frozen=True)
class Captured:
    """A graph of ATen operators whose placeholders are parameters, buffers, constants and the user's inputs.

    Attributes:
        graph: its nodes have in `meta` their value without data ("val") and the modules that they belong to
            ("nn_module_stack": for each call of a module that is under way its name and class). One that was
            read from a file has the values of the user's inputs only.
        named: what its `get_attr` nodes name.
        inputs: for each placeholder its kind, "tensor" for parameters and buffers, and the full name of what
            it stands for, the first one if that is tied.
        outputs: for each output its kind, "buffer" for what is written to one, and the buffer's name.
        constants: tensors that the graph reads besides, by name.
        takes: how the user's inputs are nested in the arguments.
        gives: how the user's outputs are nested in what the network returns.
        uses: what its sizes are computed from; None if it was not recorded.
        by_data: the lines that ask for values of the user's inputs: what is done next is what these decided.
        by_state: the lines that ask for values of parameters or buffers.
        by_calls: whose forward changes what the next call gives: the graph is that of the first call.
        others: graphs of the same network in the same mode on other inputs, where the values there decide
            otherwise.
        parameters: the names of what the network's forward takes, in order, each with its default in a tuple,
            which is empty where there is none; empty where it takes any number of arguments.
    """

    graph: fx.Graph
    named: Mapping[str, Any]
    inputs: tuple[tuple[InputKind, str], ...]
    outputs: tuple[tuple[OutputKind, str], ...]
    constants: Mapping[str, Tensor]
    takes: pytree.TreeSpec
    gives: pytree.TreeSpec
    uses: SizeUses | None = None
    by_data: tuple[str, ...] = ()
    by_state: tuple[str, ...] = ()
    by_calls: tuple[str, ...] = ()
    others: tuple[Captured, ...] = ()
    parameters: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def __deepcopy__(self, memo: Any) -> Captured:
        """Itself, since nothing of it changes."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """As plain nodes, so that it can be pickled."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        named = {
            name: (attributes_of(each.graph, each), _to_plain(each.graph)) if _is_graph(each) else each
            for name, each in self.named.items()
        }
        return _unpickled, ({**held, "graph": _to_plain(self.graph), "named": named, "uses": None},)

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph, to be run with its placeholders as inputs."""
        return fx.GraphModule(dict(self.named), self.graph)

    @cached_property
    def placeholders(self) -> dict[fx.Node, tuple[InputKind, str]]:
        """For each placeholder its kind and name, as in `inputs`."""
        return dict(zip(self.graph.find_nodes(op="placeholder"), self.inputs, strict=True))

    @cached_property
    def given(self) -> list[fx.Node]:
        """The placeholders of what the user gives."""
        return [node for node, (kind, _) in self.placeholders.items() if kind == "user"]

    @cached_property
    def tensors(self) -> dict[str, str]:
        """For each placeholder of a parameter or buffer, by its name, the full name of that."""
        return {node.name: name for node, (kind, name) in self.placeholders.items() if kind == "tensor"}

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Of the user's inputs in a row, the batch included; None for what is no tensor."""
        values = [node.meta.get("val") for node in self.given]
        return tuple(tuple(map(int, each.shape)) if isinstance(each, Tensor) else None for each in values)

    def same_as(self, other: Captured) -> bool:
        """Whether the two compute the same of the same."""
        first, second = (
            [(node.name, str(node.target), str(node.args), str(node.kwargs)) for node in each.graph.nodes]
            for each in (self, other)
        )
        return (
            first == second
            and self.tensors == other.tensors
            and self.constants.keys() == other.constants.keys()
            and all(torch.equal(value, other.constants[name]) for name, value in self.constants.items())
        )

    @cached_property
    def free(self) -> tuple[tuple[int, ...], ...]:
        """The axes of the user's inputs in a row that may have any size."""
        return tuple(tuple(node.meta.get("free", ())) for node in self.given)

    def flattened(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments in a row, as the graph takes them.

        Raises:
            InputError: where there are others than the network was exported with, or of other shapes.
        """
        positional, named = self.takes.children()
        names = list(named.context or ())
        if self.parameters:
            args, kwargs = self._arranged(args, kwargs, positional.num_children, names)
        if set(names) == set(kwargs):
            kwargs = {name: kwargs[name] for name in names}
        flat, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        if spec != self.takes:
            raise InputError(
                "an exported network takes the arguments that it was exported with: "
                f"{positional.num_children} positional ones and {names}"
            )
        for value, shape, node in zip(flat, self.shapes, self.given, strict=True):
            if shape is None:
                _check_same(value, node)
            elif not isinstance(value, Tensor) or not _fits(tuple(value.shape), shape, node.meta):
                raise InputError(_misfit(value, shape, node.meta))
        return list(flat)

    def _arranged(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int, named: Sequence[str]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments by position and by name as they were when the network was captured."""
        defaults = dict(self.parameters)
        names = list(defaults)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names) or len(given) < len(args) + len(kwargs):
            raise InputError(f"an exported network takes each of the arguments {names} once")
        wanted = [*names[:count], *named]
        for name in wanted:
            if name not in given and defaults.get(name):
                given[name] = defaults[name][0]
        for name in [name for name in given if name not in wanted]:
            if not defaults.get(name) or not _same(given[name], defaults[name][0]):
                raise InputError(
                    "an exported network takes the arguments that it was exported with, "
                    f"{wanted}; got {name!r}"
                )
        missing = [name for name in wanted if name not in given]
        if missing:
            raise InputError(
                f"an exported network takes the arguments that it was exported with, {wanted}; "
                f"{missing[0]!r} is missing"
            )
        return tuple(given[name] for name in names[:count]), {name: given[name] for name in named}


def _same(value: Any, other: Any) -> bool:
    """Whether two plain values are the same."""
    return value is other or (type(value) is type(other) and bool(value == other))


def _check_same(value: Any, node: fx.Node) -> None:
    """Raise an InputError where a value that is no tensor is not that with which the network was captured."""
    if "val" in node.meta and not _same(value, node.meta["val"]):
        raise InputError(
            f"an exported network takes the value that it was exported with, {node.meta['val']!r:.60}; "
            f"got {value!r:.60}"
        )


def _fits(found: tuple[int, ...], shape: tuple[int, ...], meta: Mapping[str, Any]) -> bool:
    free = meta.get("free", ())
    return len(found) == len(shape) and all(
        axis in free or one == other  # an export would take a comparison for a condition
        for axis, (one, other) in enumerate(zip(found, shape, strict=True))
    )


def _misfit(value: Any, shape: tuple[int, ...], meta: Mapping[str, Any]) -> str:
    """Why an input is refused, with the reason why the first axis that does not fit holds to its size."""
    free, bound = meta.get("free", ()), meta.get("bound", {})
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    allowed = ", ".join("any" if axis in free else str(size) for axis, size in enumerate(shape))
    first = [
        bound[axis]
        for axis, size in enumerate(shape)
        if axis in bound and isinstance(found, tuple) and len(found) == len(shape) and found[axis] != size
    ]
    return (
        f"an exported network takes inputs of the shape that it was exported with, ({allowed}), "
        f"the batch included; got {found}{f': {first[0]}' if first else ''}"
    )


# ---- as what can be pickled --------------------------------------------------------------------------------

_META = ("val", "nn_module_stack", "free", "bound", FOLLOWS)


@dataclass(frozen=True)
class _At:
    """A node in the arguments of another, by its place."""

    place: int


def _is_graph(value: Any) -> bool:
    return isinstance(value, fx.GraphModule)


def _to_plain(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """The nodes of a graph as tuples; operators by their names."""
    places = {node: _At(place) for place, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        target: Any = node.target
        if isinstance(target, torch._ops.OpOverload):
            target = target.namespace, target.overloadpacket.__name__, target._overloadname
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)  # type: ignore[arg-type]
        meta = {key: _without_data(node.meta[key]) for key in _META if key in node.meta}
        found.append((node.op, node.name, target, args, kwargs, meta))
    return found


def _without_data(value: Any) -> Any:
    """Tensors on the meta device in the place of PyTorch's own without data."""
    return pytree.tree_map_only(
        Tensor,
        lambda each: torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="meta"),
        value,
    )


def _from_plain(plain: Sequence[tuple[Any, ...]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for op, name, target, args, kwargs, meta in plain:
        if op == "call_function" and isinstance(target, tuple):
            space, packet, overload = target
            target = getattr(getattr(getattr(torch.ops, space), packet), overload)
        own_args, own_kwargs = (_with_nodes(each, nodes) for each in (args, kwargs))
        node = graph.create_node(op, target, own_args, own_kwargs, name)
        node.meta.update(meta)
        nodes.append(node)
    return graph


def _with_nodes(value: Any, nodes: Sequence[fx.Node]) -> Any:
    if isinstance(value, _At):
        return nodes[value.place]
    if isinstance(value, (tuple, list)):
        return type(value)([_with_nodes(each, nodes) for each in value])
    if isinstance(value, Mapping):
        return {key: _with_nodes(each, nodes) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(*(_with_nodes(each, nodes) for each in (value.start, value.stop, value.step)))
    return value


def _unpickled(held: Mapping[str, Any]) -> Captured:
    named = {
        name: fx.GraphModule(each[0], _from_plain(each[1])) if isinstance(each, tuple) else each
        for name, each in held["named"].items()
    }
    return Captured(**{**held, "graph": _from_plain(held["graph"]), "named": named})


def attributes_of(graph: fx.Graph, root: nn.Module) -> dict[str, Any]:
    """What the `get_attr` nodes of a graph name in a module."""
    names = [str(node.target) for node in graph.find_nodes(op="get_attr")]
    return {name: attrgetter(name)(root) for name in names}


class GraphModel(nn.Module):
    """A network that runs its exported graphs, in evaluation and in training mode.

    It takes inputs of the shapes that it was exported with, but for axes that are free (`Captured.free`).
    Names of modules, parameters and buffers are those of the network that was exported.

    Args:
        model: whose parameters and buffers it gets: the same objects.
        graphs: for evaluation and for training; one for both if there is only one.
    """

    def __init__(self, model: nn.Module, graphs: Sequence[Captured]) -> None:
        super().__init__()
        for name, _ in model.named_modules(remove_duplicate=False):
            if name and not _OWN.match(name):
                holder_of(self, f"{name}.")
        for name, parameter in model.named_parameters(remove_duplicate=False):
            holder_of(self, name).register_parameter(name.rpartition(".")[2], parameter)
        persistent = set(model.state_dict(keep_vars=True))
        for name, buffer in model.named_buffers(remove_duplicate=False):
            holder_of(self, name).register_buffer(
                name.rpartition(".")[2], buffer, persistent=name in persistent
            )
        self._captured = list(graphs)
        for number, graph in enumerate(graphs):
            self.add_module(graph_name(number), graph.module)
            for name, value in graph.constants.items():
                self.register_buffer(constant_name(number, name), value, persistent=False)
        # looking modules up by name in every pass would take as long as a small network's layers
        self._sources = [
            [self._source(number, *entry) for entry in graph.inputs] for number, graph in enumerate(graphs)
        ]
        for module in self.modules():
            module.training = model.training

    @property
    def graphs(self) -> tuple[Captured, ...]:
        """The graphs with their constants as they are now."""
        found = []
        for number, graph in enumerate(self._captured):
            module: fx.GraphModule = getattr(self, graph_name(number))
            constants = {name: getattr(self, constant_name(number, name)) for name in graph.constants}
            named = attributes_of(module.graph, module)
            found.append(replace(graph, graph=module.graph, named=named, constants=constants))
        return tuple(found)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Of the arguments in a row, the batch included; None for what is no tensor."""
        return self._captured[0].shapes

    @property
    def only_batch(self) -> int | None:
        """The number of examples that it takes; None where it takes any number, or no tensor."""
        graph = self._captured[0]
        pairs = zip(graph.shapes, graph.free, strict=True)
        return next((shape[0] for shape, free in pairs if shape and 0 not in free), None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs."""
        return self.run(args, kwargs, lambda _, module, given: module(*given))

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Run) -> Any:
        """The outputs, where `call` runs the graph: given its number, itself and its inputs."""
        number = min(int(self.training), len(self._captured) - 1)
        graph, found = self._captured[number], self.run_graph(number, args, kwargs, call)
        for (kind, target), value in zip(graph.outputs, found, strict=True):
            if kind == "buffer":
                with torch.no_grad():
                    self.get_buffer(target).copy_(value)
        results = [value for (kind, _), value in zip(graph.outputs, found, strict=True) if kind == "user"]
        return pytree.tree_unflatten(results, graph.gives)

    def run_graph(self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Run) -> Any:
        """What one of the graphs gives, whatever the mode is; nothing is written to buffers for it."""
        user = iter(self._captured[number].flattened(args, kwargs))
        given = [
            next(user) if owner is None else getattr(owner, name) for owner, name in self._sources[number]
        ]
        return call(number, getattr(self, graph_name(number)), given)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraphModel:
        """The network converted, as by `to` and `half`, with types and devices in its graphs."""
        before = placement(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = placement(self)
        if before is not None and after is not None and before != after:
            for number in range(len(self._captured)):
                follow(getattr(self, graph_name(number)), before, after)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        """A copy with parameters, buffers and graphs of its own."""
        made = GraphModel.__new__(GraphModel)
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the graphs' modules, which hold code."""
        state = dict(vars(self))
        own = {graph_name(number) for number in range(len(self._captured))}
        state["_modules"] = {name: each for name, each in self._modules.items() if name not in own}
        return {**state, "_captured": list(self.graphs), "_sources": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The network with its graphs' modules made anew."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for number, graph in enumerate(self._captured):
            self.add_module(graph_name(number), graph.module)
            getattr(self, graph_name(number)).training = self.training
        self._sources = [
            [self._source(number, *entry) for entry in graph.inputs]
            for number, graph in enumerate(self._captured)
        ]

    def _source(self, number: int, kind: str, name: str) -> tuple[nn.Module | None, str]:
        """The module that holds an input, and its name there; None for what the user gives."""
        if kind == "user":
            return None, name
        place, _, short = (constant_name(number, name) if kind == "constant" else name).rpartition(".")
        return self.get_submodule(place), short


def holder_of(root: nn.Module, name: str) -> nn.Module:
    """The module, made if need be, that holds the parameter or buffer of that full name."""
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        below = root._modules[part]
        assert below is not None
        root = below
    return root


_OWN = re.compile(r"_graph[0-9]")


def graph_name(number: int) -> str:
    """The name of the module that holds a graph."""
    return f"_graph{number}"


def constant_name(number: int, name: str) -> str:
    """The name of the buffer that holds a constant of a graph."""
    return f"_constant{number}_" + name.replace(".", "_")


def op_name(node: fx.Node) -> str:
    """The name of an ATen operator without overload and the "_" of one that writes in place.

    Of any other target it is its text.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = target.overloadpacket.__name__
    return name.removesuffix("_") if target._schema.is_mutable else name


def argument(node: fx.Node, name: str) -> Any:
    """An argument of a node's call by its name in the schema, or its default; None where there is none."""
    schema = getattr(node.target, "_schema", None)
    for place, each in enumerate(schema.arguments if schema is not None else ()):
        if each.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, each.default_value)
    return None


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give an argument of a node's call another value."""
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    if names.index(name) < len(node.args):
        node.update_arg(names.index(name), value)
    else:
        node.update_kwarg(name, value)


def shape_of(node: Any) -> list[int]:
    """The shape of a node's value."""
    return [int(size) for size in node.meta["val"].shape]


def module_of(node: fx.Node) -> str:
    """Full name of the module whose forward calls a node; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def is_written(node: fx.Node) -> bool:
    """Whether a node writes into its first argument."""
    return bool(node.args) and bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def is_view(node: fx.Node) -> bool:
    """Whether a node's value may lie in the memory of what it reads, into which it does not write."""
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    aliased = any(each.alias_info is not None for each in arguments)
    return node.target is operator.getitem or (aliased and not is_written(node))


def memory_of(node: fx.Node) -> fx.Node:
    """The node whose memory a node's value lies in."""
    while is_view(node) or is_written(node):
        (node, *_) = node.all_input_nodes
    return node


def leading_to(node: fx.Node) -> set[fx.Node]:
    """Everything that a node is computed from, and the node itself."""
    found, waiting = {node}, [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def behind(first: Collection[fx.Node], nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The first ones and everything that is computed from them, in the order of the nodes."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        if node in first or any(before in found for before in node.all_input_nodes):
            found[node] = None
    return list(found)
