"""One graph of a network, and what goes in and out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunekit.errors import InputError

InputKind = Literal["tensor", "constant", "user"]
OutputKind = Literal["user", "buffer", "other"]


@dataclass(frozen=True)
class Captured:
    """A graph of ATen operators whose placeholders are parameters, buffers, constants and the user's inputs.

    Attributes:
        mode: "eval" or "train".
        graph: its nodes have in `meta` their value without data ("val") and the modules that they belong to
            ("nn_module_stack": for each call of a module that is under way its name and class).
        root: what its `get_attr` nodes name.
        tensors: for each placeholder of a parameter or buffer its full name, the first one if it is tied.
        inputs: for each placeholder its kind, and the full name of what it stands for.
        outputs: for each output its kind, "buffer" for what is written to one, and the buffer's name.
        constants: tensors that the graph reads besides, by name.
        takes: how the user's inputs are nested in the arguments.
        gives: how the user's outputs are nested in what the network returns.
    """

    mode: str
    graph: fx.Graph
    root: nn.Module
    tensors: Mapping[str, str]
    inputs: tuple[tuple[InputKind, str], ...]
    outputs: tuple[tuple[OutputKind, str], ...]
    constants: Mapping[str, Tensor]
    takes: pytree.TreeSpec
    gives: pytree.TreeSpec

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph, to be run with its placeholders as inputs."""
        return fx.GraphModule(self.root, self.graph)

    @property
    def placeholders(self) -> dict[fx.Node, tuple[InputKind, str]]:
        """For each placeholder its kind and name, as in `inputs`."""
        nodes = [node for node in self.graph.nodes if node.op == "placeholder"]
        return dict(zip(nodes, self.inputs, strict=True))

    @property
    def given(self) -> list[fx.Node]:
        """The placeholders of what the user gives."""
        return [node for node, (kind, _) in self.placeholders.items() if kind == "user"]

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


@dataclass(frozen=True)
class Signature:
    """The order and the kinds of a graph's inputs and outputs.

    Attributes:
        inputs: for each input of the graph its kind, "tensor" for parameters and buffers, "constant" or
            "user", and the name of what it reads.
        outputs: for each output its kind, "buffer" for what is written to one, "user" or "other", and the
            buffer's name.
        shapes: of the user's inputs, in the graph's order; None for what is no tensor.
        dtypes: likewise.
        takes: how the user's inputs are nested in the arguments.
        gives: how the user's outputs are nested in what the network returns.
    """

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    takes: pytree.TreeSpec
    gives: pytree.TreeSpec

    def __deepcopy__(self, memo: Any) -> Signature:
        """Itself, since nothing of it changes."""
        return self

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
            if shape is not None and (not isinstance(value, torch.Tensor) or tuple(value.shape) != shape):
                found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise InputError(
                    f"an exported network takes inputs of the shape that it was exported with, {shape}, "
                    f"the batch included; got {found}"
                )
        return list(flat)

    def returned(self, values: list[Any]) -> Any:
        """The user's outputs, nested as the network returns them."""
        return pytree.tree_unflatten(values, self.gives)


def signature_of(graph: Captured) -> Signature:
    """The signature of a graph."""
    values = [node.meta.get("val") for node in graph.given]
    shapes = tuple(tuple(map(int, v.shape)) if isinstance(v, torch.Tensor) else None for v in values)
    dtypes = tuple(v.dtype if isinstance(v, torch.Tensor) else None for v in values)
    return Signature(graph.inputs, graph.outputs, shapes, dtypes, graph.takes, graph.gives)
