"""What goes in and out of an exported graph, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from prunekit.errors import InputError
from prunekit.graph.captured import Captured


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
    nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
    values = [
        node.meta.get("val") for node, (kind, _) in zip(nodes, graph.inputs, strict=True) if kind == "user"
    ]
    shapes = tuple(tuple(map(int, v.shape)) if isinstance(v, torch.Tensor) else None for v in values)
    dtypes = tuple(v.dtype if isinstance(v, torch.Tensor) else None for v in values)
    return Signature(graph.inputs, graph.outputs, shapes, dtypes, graph.takes, graph.gives)
