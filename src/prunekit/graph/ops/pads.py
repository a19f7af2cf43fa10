"""Padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunekit.graph.ops.moves import laid
from prunekit.graph.ops.registry import rule
from prunekit.graph.values import Dim, Value
from prunekit.graph.walker import Walker


@rule("pad", "constant_pad_nd")
def pad(
    walker: Walker, x: Value, pads: Sequence[int], mode: Any = "constant", value: float | None = None
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
            walker.freeze([dim], "is padded")
            result[axis] = Dim(size)
            continue
        zero = not value
        edges = [Dim(count, walker.labels.new(count), zero) for count in (before, after)]
        known = dim.labels is not None
        result[axis] = (
            laid([edges[0], dim, edges[1]]) if known or axis == 1 else Dim(dim.size + before + after)
        )
        result[axis] = result[axis]._replace(zero=result[axis].zero and zero)
    return tuple(result)


@rule("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "reflection_pad3d")
def mirrored(walker: Walker, x: Value, pads: Sequence[int]) -> Value:
    """Edges filled from the inside."""
    return pad(walker, x, pads, "reflect")
