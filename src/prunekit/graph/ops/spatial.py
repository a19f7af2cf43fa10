"""Pooling, interpolation and the reordering of channels and places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunekit.graph.blocks import rows_joined
from prunekit.graph.ops.registry import rule
from prunekit.graph.values import Dim, Value
from prunekit.graph.walker import Walker

_POOLS = [
    f"{name}{rank}d"
    for name in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "_adaptive_avg_pool")
    for rank in (1, 2, 3)
]
_UPSAMPLE = ["nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d"]


def _places(walker: Walker, x: Value, places: int) -> list[Dim]:
    walker.freeze(x[len(x) - places :], "is pooled over")
    return [dim._replace(origin=None) for dim in x[: len(x) - places]]


@rule(*_POOLS, *(f"upsample_{name}" for name in _UPSAMPLE), "max_pool2d_with_indices", "lp_pool2d")
def pooled(walker: Walker, x: Value, *_: Any, **__: Any) -> Any:
    """The last axes pooled or widened, channels each by itself."""
    val = walker.val
    name = walker.operator
    places = next(rank for rank in (1, 2, 3) if f"{rank}d" in name)
    lead = _places(walker, x, places)

    def shaped(item: Any) -> Value:
        return (*lead, *(Dim(int(size)) for size in item.shape[len(lead) :]))

    return [shaped(item) for item in val] if isinstance(val, (tuple, list)) else shaped(val)


@rule("im2col")
def im2col(walker: Walker, x: Value, kernel: Sequence[int], *_: Any, **__: Any) -> Value:
    """x (N, C, H, W) as (N, C * kernel, places)."""
    lead = _places(walker, x, 2)
    times = int(np.prod(kernel))
    last = Dim(int(walker.val.shape[-1]))
    return (*lead[:-1], _repeated(lead[-1], times), last)


@rule("col2im")
def col2im(walker: Walker, x: Value, size: Sequence[int], kernel: Sequence[int], *_: Any, **__: Any) -> Value:
    """x (N, C * kernel, places) as (N, C, H, W)."""
    lead = _places(walker, x, 1)
    return (*lead[:-1], _blocks(walker, lead[-1], int(np.prod(kernel))), *(Dim(each) for each in size))


@rule("pixel_shuffle")
def pixel_shuffle(walker: Walker, x: Value, factor: int) -> Value:
    """x (..., C * factor^2, H, W) as (..., C, H * factor, W * factor)."""
    lead = _places(walker, x, 2)
    high, wide = (Dim(dim.size * factor) for dim in x[-2:])
    return (*lead[:-1], _blocks(walker, lead[-1], factor * factor), high, wide)


@rule("pixel_unshuffle")
def pixel_unshuffle(walker: Walker, x: Value, factor: int) -> Value:
    """x (..., C, H, W) as (..., C * factor^2, H / factor, W / factor)."""
    lead = _places(walker, x, 2)
    high, wide = (Dim(dim.size // factor) for dim in x[-2:])
    return (*lead[:-1], _repeated(lead[-1], factor * factor), high, wide)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(walker: Walker, x: Value, groups: int) -> Value:
    """x (N, C, ...): channel (group, offset) goes to (offset, group); either goes in whole."""
    labels = x[1].labels
    if labels is None:
        return x
    grid = labels.reshape(groups, -1)
    way = walker.choose("groups", [0, 1] if grid.shape[0] >= grid.shape[1] else [1, 0])
    if way is None:
        return (x[0], walker.fix(x[1], "is shuffled"), *x[2:])
    if way == 0:
        rows = rows_joined(walker, grid)
        labels = np.tile(rows, grid.shape[1])
    else:
        rows = rows_joined(walker, grid.T)
        labels = rows.repeat(groups)
    walker.chosen("groups", way, rows)
    return (x[0], Dim(x[1].size, labels, x[1].zero), *x[2:])


def _repeated(dim: Dim, times: int) -> Dim:
    return Dim(dim.size * times, None if dim.labels is None else dim.labels.repeat(times), dim.zero)


def _blocks(walker: Walker, dim: Dim, size: int) -> Dim:
    count = dim.size // size
    if dim.labels is None:
        return Dim(count)
    return Dim(count, rows_joined(walker, dim.labels.reshape(count, size)), dim.zero)
