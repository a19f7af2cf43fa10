"""A network's graphs of operators: their nodes, and a module that runs them with the network's parameters."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunekit.errors import InputError
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
        others: graphs of the same network in the same mode on other inputs, where the values there decide
            otherwise.
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
    others: tuple[Captured, ...] = ()

    def __deepcopy__(self, memo: Any) -> Captured:
        """Itself, since nothing of it changes."""
        return self

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

    def flattened(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments in a row, as the graph takes them.

        Raises:
            InputError: where there are others than the network was exported with, or of other shapes.
        """
        positional, named = self.takes.children()
        names = list(named.context or ())
        if set(names) == set(kwargs):
            kwargs = {name: kwargs[name] for name in names}
        flat, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        if spec != self.takes:
            raise InputError(
                "an exported network takes the arguments that it was exported with: "
                f"{positional.num_children} positional ones and {names}"
            )
        for value, shape in zip(flat, self.shapes, strict=True):
            if shape is not None and (not isinstance(value, Tensor) or tuple(value.shape) != shape):
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"an exported network takes inputs of the shape that it was exported with, {shape}, "
                    f"the batch included; got {found}"
                )
        return list(flat)


def attributes_of(graph: fx.Graph, root: nn.Module) -> dict[str, Any]:
    """What the `get_attr` nodes of a graph name in a module."""
    names = [str(node.target) for node in graph.find_nodes(op="get_attr")]
    return {name: attrgetter(name)(root) for name in names}


class GraphModel(nn.Module):
    """A network that runs its exported graphs, in evaluation and in training mode.

    It takes inputs of the shapes that it was exported with, the batch included. Names of parameters and
    buffers are those of the network that was exported.

    Args:
        model: whose parameters and buffers it gets: the same objects.
        graphs: for evaluation and for training; one for both if there is only one.
    """

    def __init__(self, model: nn.Module, graphs: Sequence[Captured]) -> None:
        super().__init__()
        for name, parameter in model.named_parameters(remove_duplicate=False):
            holder_of(self, name).register_parameter(name.rpartition(".")[2], parameter)
        persistent = set(model.state_dict(keep_vars=True))
        for name, buffer in model.named_buffers(remove_duplicate=False):
            holder_of(self, name).register_buffer(
                name.rpartition(".")[2], buffer, persistent=name in persistent
            )
        self._captured = list(graphs)
        for number, graph in enumerate(graphs):
            self.add_module(f"_graph{number}", graph.module)
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
            module: fx.GraphModule = getattr(self, f"_graph{number}")
            constants = {name: getattr(self, constant_name(number, name)) for name in graph.constants}
            named = attributes_of(module.graph, module)
            found.append(replace(graph, graph=module.graph, named=named, constants=constants))
        return tuple(found)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Of the arguments in a row, the batch included; None for what is no tensor."""
        return self._captured[0].shapes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs."""
        return self.run(args, kwargs, lambda _, module, given: module(*given))

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Run) -> Any:
        """The outputs, where `call` runs the graph: given its number, itself and its inputs."""
        number = min(int(self.training), len(self._captured) - 1)
        graph = self._captured[number]
        user = iter(graph.flattened(args, kwargs))
        given = [
            next(user) if owner is None else getattr(owner, name) for owner, name in self._sources[number]
        ]
        found = call(number, getattr(self, f"_graph{number}"), given)
        for (kind, target), value in zip(graph.outputs, found, strict=True):
            if kind == "buffer":
                with torch.no_grad():
                    self.get_buffer(target).copy_(value)
        results = [value for (kind, _), value in zip(graph.outputs, found, strict=True) if kind == "user"]
        return pytree.tree_unflatten(results, graph.gives)

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
