"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunekit.graph.blocks import rows_joined
from prunekit.graph.ops.registry import rule
from prunekit.graph.values import Dim, Value
from prunekit.graph.walker import Walker


@rule("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_batch_norm")
def batch_norm(
    walker: Walker,
    x: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    mean: Value | None = None,
    var: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """x (N, C, ...), statistics for each channel."""
    return _per_channel(walker, x, [weight, bias, mean, var])


@rule("instance_norm")
def instance_norm(
    walker: Walker,
    x: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    mean: Value | None = None,
    var: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """x (N, C, ...), statistics for each channel of each example."""
    return _per_channel(walker, x, [weight, bias, mean, var])


def _per_channel(walker: Walker, x: Value, along: Sequence[Value | None]) -> Value:
    walker.freeze(x[2:], "is normalised over")
    labels = walker.join_all([x[1], *(value[0] for value in along if value is not None)])
    zero = along[0] is not None or x[1].zero
    return (x[0], Dim(x[1].size, labels, zero), *(Dim(dim.size) for dim in x[2:]))


@rule("layer_norm", "native_layer_norm")
def layer_norm(
    walker: Walker,
    x: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """Statistics over the last axes, together."""
    return _over_last(walker, x, len(shape), [weight, bias])


@rule("rms_norm", "_fused_rms_norm")
def rms_norm(
    walker: Walker, x: Value, shape: Sequence[int], weight: Value | None = None, *_: Any, **__: Any
) -> Value:
    """The mean square over the last axes, together."""
    return _over_last(walker, x, len(shape), [weight, None])


def _over_last(walker: Walker, x: Value, count: int, along: Sequence[Value | None]) -> Value:
    result = list(x)
    for offset in range(1, count + 1):
        dim = x[-offset]
        walker.normalised(dim)
        labels = walker.join_all([dim, *(value[-offset] for value in along if value is not None)])
        # without a scale the mean is taken off, and what was zero is no longer
        zero = along[0] is not None or ("rms" in walker.operator and dim.zero)
        result[-offset] = Dim(dim.size, labels, zero)
    return tuple(dim._replace(origin=None) for dim in result)


@rule("group_norm", "native_group_norm")
def group_norm(
    walker: Walker,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """x (N, C, ...): whole groups go, or the same offset within each group."""
    walker.freeze(x[2:], "is normalised over")
    labels = walker.join_all([x[1], *(value[0] for value in (weight, bias) if value is not None)])
    size = x[1].size
    if labels is not None:
        labels = _cut(walker, labels, groups)
    return (x[0], Dim(size, labels, weight is not None), *(Dim(dim.size) for dim in x[2:]))


def _cut(walker: Walker, labels: Any, groups: int) -> Any:
    each = labels.size // groups
    if each == 1:
        return labels
    ways = [0, 1] if groups > 1 else [1]
    way = walker.choose("groups", ways if groups >= each else ways[::-1])
    if way is None:
        walker.labels.freeze(labels, f"leaves nothing that every group could go without at {walker.where}")
        return None
    if way == 0:
        rows = rows_joined(walker, labels.reshape(groups, each))
        walker.chosen("groups", 0, rows)
        return rows.repeat(each)
    rows = rows_joined(walker, labels.reshape(groups, each).T)
    walker.normalised(Dim(each, rows))
    if groups > 1:
        walker.chosen("groups", 1, rows)
    return np.tile(rows, groups)
