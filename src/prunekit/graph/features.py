"""Features of a network's input: which of its numbers are one feature, and leaving some out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from prunekit.graph.captured import Captured, leading_to
from prunekit.graph.labels import Dim, Ints, Value, fixed
from prunekit.graph.ops import op_name

_SHAPING = frozenset({"flatten", "view", "reshape", "_unsafe_view"})


@dataclass(frozen=True)
class Features:
    """What one feature of the input is.

    Attributes:
        axis: of the input, along which features lie; None where the network lays out each example as one row
            of numbers, which are the features then.
        size: how many there are.
    """

    axis: int | None
    size: int

    def known(self, graph: Captured, labels: Ints) -> dict[fx.Node, Value]:
        """Labels for the node of a graph that holds the features.

        Args:
            graph: of the network that these are the features of.
            labels: (size,) one for each feature.
        """
        node = _input_of(graph)
        assert node is not None
        if self.axis is None:
            node = _rows(node)
            assert node is not None
        dims = list(fixed(node.meta["val"].shape))
        dims[1 if self.axis is None else self.axis] = Dim(self.size, labels)
        return {node: tuple(dims)}

    def narrowed(self, inputs: Tensor, kept: Tensor) -> Tensor:
        """Inputs with some features only.

        Args:
            inputs: as the whole network takes them.
            kept: (size,) flags, True = kept.
        """
        index = kept.nonzero().flatten().to(inputs.device)
        if self.axis is None:
            return inputs.flatten(1).index_select(1, index)
        return inputs.index_select(self.axis, index)


def features_of(graph: Captured) -> Iterator[Features]:
    """What the features of a network's only input of real numbers may be, the likeliest first.

    The numbers of a row, where the network lays its input out as rows; else what lies along the second axis,
    as the channels of images do, or along the last.
    """
    node = _input_of(graph)
    if node is None:
        return
    shape = node.meta["val"].shape
    rows = _rows(node)
    if rows is not None:
        yield Features(None, int(rows.meta["val"].shape[1]))
    for axis in dict.fromkeys((1, len(shape) - 1)):
        if shape[axis] > 1:
            yield Features(axis, int(shape[axis]))


def _input_of(graph: Captured) -> fx.Node | None:
    """The only input of real numbers with a batch that the output depends on."""
    nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
    live = leading_to(list(graph.graph.nodes)[-1])
    found = [
        node
        for node, (kind, _) in zip(nodes, graph.inputs, strict=True)
        if kind == "user" and node in live and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    if len(found) != 1 or not found[0].meta["val"].is_floating_point() or found[0].meta["val"].dim() < 2:
        return None
    return found[0]


def _rows(node: fx.Node) -> fx.Node | None:
    """The input as rows of numbers, where the network lays it out so before it computes with it."""
    whole = node.meta["val"].shape
    while len(users := list(node.users)) == 1 and len(users[0].all_input_nodes) == 1:
        (node,) = users
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.numel() != whole.numel():
            return None
        if op_name(node) in _SHAPING and tuple(value.shape) == (whole[0], whole[1:].numel()):
            return node if len(whole) > 2 else None
    return None
