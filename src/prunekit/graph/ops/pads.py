"""Padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from prunekit.graph.labels import Dim, Value
from prunekit.graph.ops.moves import laid
from prunekit.graph.ops.registry import Keeps, argument, kept_along, operators, set_argument
from prunekit.graph.propagator import Propagator


def pad(
    propagator: Propagator, x: Value, pads: Sequence[int], mode: Any = "constant", value: float | None = None
) -> Value:
    """Entries before and after each axis, from the last axis on."""
    if not isinstance(mode, str):
        mode, value = "constant", mode
    result = list(x)
    for index in range(len(pads) // 2):
        before, after = pads[2 * index : 2 * index + 2]
        axis = len(x) - 1 - index
        if before == after == 0:
            continue
        dim = x[axis]
        if mode != "constant" or min(before, after) < 0:
            size = dim.size + before + after
            propagator.freeze([dim], "is padded")
            result[axis] = Dim(size)
            continue
        zero = not value
        edges = [Dim(count, propagator.labels.new(count), zero) for count in (before, after)]
        known = dim.labels is not None
        result[axis] = (
            laid([edges[0], dim, edges[1]]) if known or axis == 1 else Dim(dim.size + before + after)
        )
        result[axis] = result[axis]._replace(zero=result[axis].zero and zero)
    return tuple(result)


def mirrored(propagator: Propagator, x: Value, pads: Sequence[int]) -> Value:
    """Edges filled from the inside."""
    return pad(propagator, x, pads, "reflect")


def resize_pads(node: fx.Node, keeps: Keeps) -> None:
    """Edges that meet units which are taken out go with them."""
    pads = list(argument(node, 1, "pad"))
    rank = len(node.meta["val"].shape)
    for index in range(len(pads) // 2):
        flags = kept_along(node, keeps, rank - 1 - index)
        before, after = pads[2 * index : 2 * index + 2]
        if flags is not None and min(before, after) >= 0:
            pads[2 * index] = int(flags[:before].sum())
            pads[2 * index + 1] = int(flags[flags.size - after :].sum())
    set_argument(node, 1, "pad", pads)


operators(
    """
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    """,
    labels=mirrored,
    saved="default",
)
operators(
    "constant_pad_nd pad",
    labels=pad,
    resize=resize_pads,
    by_extent=lambda node: argument(node, 2, "mode", "constant") not in ("reflect", "replicate", "circular"),
    saved="default",
)
operators("replication_pad3d", saved="default")
