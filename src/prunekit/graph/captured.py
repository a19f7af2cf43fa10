"""One graph of a network, with what goes in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

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


def module_of(node: fx.Node) -> str:
    """Full name of the module whose forward calls a node; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def leading_to(node: fx.Node) -> set[fx.Node]:
    """Everything that a node is computed from, and the node itself."""
    found, waiting = {node}, [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found
