"""Pooling, padding, interpolation and the reordering of channels and places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx, nn

from prunekit.graph.captured_graph import argument, set_argument, shape_of
from prunekit.graph.labels import GROUPS, Dim, Propagator, Value, along, merged, split
from prunekit.graph.ops.moves import laid, widened
from prunekit.graph.ops.registry import Keeps, always, kept_along, operators, resize_groups


def _places(propagator: Propagator, x: Value, places: int) -> list[Dim]:
    propagator.freeze(x[len(x) - places :], "is pooled over")
    return [dim._replace(origin=None) for dim in x[: len(x) - places]]


def pooled(propagator: Propagator, x: Value, *_: Any, **__: Any) -> Any:
    """The last axes pooled or widened, channels each by itself; where the maxima were comes second."""
    val = propagator.val
    name = propagator.operator
    places = next(rank for rank in (1, 2, 3) if f"{rank}d" in name)
    lead = _places(propagator, x, places)

    def shaped(item: Any, zero: bool = True) -> Value:
        # places are not zero where all values are
        kept = lead if zero else tuple(dim._replace(zero=False) for dim in lead)
        return (*kept, *(Dim(int(size)) for size in item.shape[len(lead) :]))

    if isinstance(val, (tuple, list)):
        return [shaped(item, zero=number == 0) for number, item in enumerate(val)]
    return shaped(val)


def unpooled(propagator: Propagator, x: Value, indices: Value, *_: Any, **__: Any) -> Any:
    """Maxima put back to their places; a channel goes with the places of its maxima."""
    lead = len(x) - (3 if propagator.operator.endswith("3d") else 2)
    propagator.freeze(indices[lead:], "is pooled over")
    pairs = zip(x[:lead], indices[:lead], strict=True)
    met = [values._replace(labels=propagator.join(values, places)) for values, places in pairs]
    return pooled(propagator, (*met, *x[lead:]))


def im2col(propagator: Propagator, x: Value, kernel: Sequence[int], *_: Any, **__: Any) -> Value:
    """x (N, C, H, W) as (N, C * kernel, places)."""
    lead = _places(propagator, x, 2)
    times = int(np.prod(kernel))
    last = Dim(int(propagator.val.shape[-1]))
    return (*lead[:-1], widened(lead[-1], times), last)


def col2im(
    propagator: Propagator, x: Value, size: Sequence[int], kernel: Sequence[int], *_: Any, **__: Any
) -> Value:
    """x (N, C * kernel, places) as (N, C, H, W)."""
    lead = _places(propagator, x, 1)
    return (*lead[:-1], blocks(propagator, lead[-1], int(np.prod(kernel))), *(Dim(each) for each in size))


def pixel_shuffle(propagator: Propagator, x: Value, factor: int) -> Value:
    """x (..., C * factor^2, H, W) as (..., C, H * factor, W * factor)."""
    lead = _places(propagator, x, 2)
    high, wide = (Dim(dim.size * factor) for dim in x[-2:])
    return (*lead[:-1], blocks(propagator, lead[-1], factor * factor), high, wide)


def pixel_unshuffle(propagator: Propagator, x: Value, factor: int) -> Value:
    """x (..., C, H, W) as (..., C * factor^2, H / factor, W / factor)."""
    lead = _places(propagator, x, 2)
    high, wide = (Dim(dim.size // factor) for dim in x[-2:])
    return (*lead[:-1], widened(lead[-1], factor * factor), high, wide)


def channel_shuffle(propagator: Propagator, x: Value, groups: int) -> Value:
    """x (N, C, ...): channel (group, offset) goes to (offset, group); either goes in whole."""
    cut = split(propagator, x[1], [groups, x[1].size // groups], tag=GROUPS)
    return (x[0], merged(propagator, cut[::-1], tag=GROUPS), *x[2:])


def sampled(propagator: Propagator, x: Value, grid: Value, *_: Any, **__: Any) -> Value:
    """x (N, C, ...) read between its entries at the places (N, ..., axes) of a grid; zeros lie around it."""
    propagator.freeze(grid, "says where to read")
    lead = _places(propagator, x, len(x) - 2)
    return (*lead, *(Dim(dim.size) for dim in grid[1:-1]))


def blocks(propagator: Propagator, dim: Dim, size: int) -> Dim:
    """An axis of which several entries in a row become one."""
    return along(propagator, dim, [dim.size // size, size], 0)


def groups_of(module: nn.Module, node: fx.Node, keeps: Keeps) -> dict[str, Any]:
    """Of a shuffle of channels."""
    return {"groups": argument(node, "groups")} if hasattr(module, "groups") else {}


def counts_pad(node: fx.Node) -> bool:
    """Of averages: whether zeros at the edges count; with a divisor of its own it is no average."""
    counted = bool(np.any(argument(node, "padding"))) and bool(argument(node, "count_include_pad"))
    return counted or argument(node, "divisor_override") is not None


operators(
    "channel_shuffle native_channel_shuffle",
    labels=channel_shuffle,
    resize=resize_groups,
    attributes=groups_of,
    saved="default",
)
operators("col2im", labels=col2im, by_extent=always, saved="default")
operators("im2col", labels=im2col, by_extent=always, saved="default")
operators("pixel_shuffle", labels=pixel_shuffle, saved="default")
operators("pixel_unshuffle", labels=pixel_unshuffle, saved="default")
operators("_adaptive_avg_pool1d _adaptive_avg_pool3d lp_pool2d", labels=pooled)
operators(
    "_adaptive_avg_pool2d max_pool2d_with_indices max_pool3d_with_indices", labels=pooled, saved="default"
)
operators(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d max_pool1d max_pool2d max_pool3d
    """,
    labels=pooled,
    passes_units=True,
    saved="default",
)
operators(
    "avg_pool1d avg_pool2d avg_pool3d",
    labels=pooled,
    passes_units=True,
    by_extent=counts_pad,
    saved="default",
)
operators("max_unpool2d max_unpool3d", labels=unpooled, saved="default")
operators(
    """
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d
    """,
    labels=pooled,
    saved="default vec",
)
operators("grid_sampler", labels=sampled, saved="default")


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
    pads, rank = list(argument(node, "pad")), len(shape_of(node))
    for index in range(len(pads) // 2):
        flags = kept_along(node, keeps, rank - 1 - index)
        before, after = pads[2 * index : 2 * index + 2]
        if flags is not None and min(before, after) >= 0:
            pads[2 * index] = int(flags[:before].sum())
            pads[2 * index + 1] = int(flags[flags.size - after :].sum())
    set_argument(node, "pad", pads)


operators(
    """
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d
    """,
    labels=mirrored,
    saved="default",
)
operators(
    "constant_pad_nd pad",
    labels=pad,
    resize=resize_pads,
    by_extent=lambda node: argument(node, "mode") not in ("reflect", "replicate", "circular"),
    saved="default",
)
