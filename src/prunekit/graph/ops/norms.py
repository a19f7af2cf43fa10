"""Normalisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from prunekit.graph.labels import Dim, Value
from prunekit.graph.ops.registry import (
    Keeps,
    argument,
    groups_left,
    kept_along,
    new_shape,
    operators,
    set_argument,
    spread,
    taken,
)
from prunekit.graph.propagator import Propagator, rows_joined


def batch_norm(
    propagator: Propagator,
    x: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    mean: Value | None = None,
    var: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """x (N, C, ...), statistics for each channel."""
    return _per_channel(propagator, x, [weight, bias, mean, var])


def instance_norm(
    propagator: Propagator,
    x: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    mean: Value | None = None,
    var: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """x (N, C, ...), statistics for each channel of each example."""
    return _per_channel(propagator, x, [weight, bias, mean, var])


def _per_channel(propagator: Propagator, x: Value, along: Sequence[Value | None]) -> Value:
    propagator.freeze(x[2:], "is normalised over")
    labels = propagator.join_all([x[1], *(value[0] for value in along if value is not None)])
    zero = along[0] is not None or x[1].zero
    return (x[0], Dim(x[1].size, labels, zero), *(Dim(dim.size) for dim in x[2:]))


def layer_norm(
    propagator: Propagator,
    x: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """Statistics over the last axes, together."""
    return _over_last(propagator, x, len(shape), [weight, bias])


def rms_norm(
    propagator: Propagator, x: Value, shape: Sequence[int], weight: Value | None = None, *_: Any, **__: Any
) -> Value:
    """The mean square over the last axes, together."""
    return _over_last(propagator, x, len(shape), [weight, None])


def _over_last(propagator: Propagator, x: Value, count: int, along: Sequence[Value | None]) -> Value:
    result = list(x)
    for offset in range(1, count + 1):
        dim = x[-offset]
        propagator.normalised(dim)
        labels = propagator.join_all([dim, *(value[-offset] for value in along if value is not None)])
        # without a scale the mean is taken off, and what was zero is no longer
        zero = along[0] is not None or ("rms" in propagator.operator and dim.zero)
        result[-offset] = Dim(dim.size, labels, zero)
    return tuple(dim._replace(origin=None) for dim in result)


def group_norm(
    propagator: Propagator,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """x (N, C, ...): whole groups go, or the same offset within each group."""
    propagator.freeze(x[2:], "is normalised over")
    labels = propagator.join_all([x[1], *(value[0] for value in (weight, bias) if value is not None)])
    size = x[1].size
    if labels is not None:
        labels = _cut(propagator, labels, groups)
    return (x[0], Dim(size, labels, weight is not None), *(Dim(dim.size) for dim in x[2:]))


def _cut(propagator: Propagator, labels: Any, groups: int) -> Any:
    size = labels.size
    each = size // groups
    if each == 1:
        return labels
    ways = [0, 1] if groups > 1 else [1]
    way = propagator.choose("groups", ways if groups >= each else ways[::-1])
    if way is None:
        propagator.freeze([Dim(size, labels)], "leaves nothing that every group could go without")
        return None
    if way == 0:
        rows = rows_joined(propagator, labels.reshape(groups, each))
        propagator.chosen("groups", 0, rows)
        return rows.repeat(each)
    rows = rows_joined(propagator, labels.reshape(groups, each).T)
    propagator.normalised(Dim(each, rows))
    if groups > 1:
        propagator.chosen("groups", 1, rows)
    return np.tile(rows, groups)


def resize_groups(node: fx.Node, keeps: Keeps) -> None:
    """The number of groups that have something left."""
    groups = argument(node, 1, "num_groups")
    set_argument(node, 1, "num_groups", groups_left(kept_along(node.args[0], keeps, 1), groups))


def resize_normalized_shape(node: fx.Node, keeps: Keeps) -> None:
    """The last axes that stay."""
    shape = argument(node, 1, "normalized_shape")
    set_argument(node, 1, "normalized_shape", new_shape(node, keeps)[-len(shape) :])


def layer_norm_over_kept(
    call: Callable[..., Any], node: fx.Node, args: Any, kwargs: Any, keeps: Keeps
) -> Any:
    """Statistics over what stays of the last axes; zeros elsewhere."""
    x, shape, rest = args[0], list(args[1]), list(args[2:])
    for offset in range(1, len(shape) + 1):
        flags = kept_along(node, keeps, x.dim() - offset)
        if flags is not None:
            x = taken(x, -offset, flags)
            shape[-offset] = x.shape[-offset]
            rest = [taken(r, -offset, flags) if isinstance(r, Tensor) else r for r in rest]
    found = call(x, shape, *rest, **kwargs)
    for offset in range(1, len(shape) + 1):
        flags = kept_along(node, keeps, x.dim() - offset)
        if flags is not None:
            found = spread(found, -offset, flags)
    return found


def group_norm_over_kept(
    call: Callable[..., Any], node: fx.Node, args: Any, kwargs: Any, keeps: Keeps
) -> Any:
    """Statistics over what stays of each group; zeros elsewhere."""
    flags = kept_along(node, keeps, 1)
    if flags is None:
        return call(*args, **kwargs)
    rest = [taken(r, 0, flags) if isinstance(r, Tensor) else r for r in args[2:]]
    found = call(taken(args[0], 1, flags), groups_left(flags, args[1]), *rest, **kwargs)
    return spread(found, 1, flags)


def normalized_shape_of(module: nn.Module, node: fx.Node) -> dict[str, Any]:
    """Of a layer norm, which need not have parameters."""
    if not hasattr(module, "normalized_shape"):
        return {}
    shape: Any = tuple(node.args[1])  # type: ignore[arg-type]
    kind: Any = type(module.normalized_shape)
    return {"normalized_shape": kind(shape) if kind is not tuple else shape}


def groups_of(module: nn.Module, node: fx.Node) -> dict[str, Any]:
    """Of a group norm, which need not have parameters."""
    if not isinstance(module, nn.GroupNorm):
        return {}
    groups: int = node.args[1]  # type: ignore[assignment]
    return {"num_groups": groups, "num_channels": module.num_channels * groups // module.num_groups}


def sizes_of_norm(module: nn.Module, name: str, shape: tuple[int, ...], groups: int) -> dict[str, Any]:
    """The channels of a batch or instance norm, which all of its tensors are along."""
    return {"num_features": shape[0]} if isinstance(module, _NORMS) and shape else {}


def check_running_statistics(arguments: Mapping[str, Any], *, flag: str) -> None:
    """Refuse statistics that the kernel would write into its arguments, which it does where `flag` is set."""
    if arguments.get(flag) and arguments.get("running_mean") is not None:
        raise ValueError("it would write into its arguments")


def check_weight_norm(arguments: Mapping[str, Any]) -> None:
    """Refuse norms of another shape than one for each slice, or one for all: the kernel does not look."""
    v, g, dim = arguments["v"], arguments["g"], arguments.get("dim", 0)
    each = tuple(v.shape[axis] if axis == dim else 1 for axis in range(v.dim()))
    one = dim == -1 and g.numel() == 1
    if v.dtype != g.dtype or not -1 <= dim < v.dim() or not (one or tuple(g.shape) == each):
        shapes = f"{tuple(g.shape)} for weights of shape {tuple(v.shape)}"
        raise ValueError(f"norms of shape {shapes}, dim = {dim}")


_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip

operators("_native_batch_norm_legit_no_training cudnn_batch_norm native_batch_norm", labels=batch_norm)
operators(
    "batch_norm",
    labels=batch_norm,
    module_sizes=sizes_of_norm,
    saved="default",
    check=partial(check_running_statistics, flag="training"),
)
operators(
    "group_norm",
    labels=group_norm,
    resize=resize_groups,
    attributes=groups_of,
    over_kept=group_norm_over_kept,
    saved="default",
)
operators("native_group_norm", labels=group_norm)
operators(
    "instance_norm",
    labels=instance_norm,
    module_sizes=sizes_of_norm,
    saved="default",
    check=partial(check_running_statistics, flag="use_input_stats"),
)
operators(
    "layer_norm",
    labels=layer_norm,
    resize=resize_normalized_shape,
    attributes=normalized_shape_of,
    over_kept=layer_norm_over_kept,
    saved="default",
)
operators("native_layer_norm", labels=layer_norm)
operators("_fused_rms_norm", labels=rms_norm)
operators(
    "rms_norm",
    labels=rms_norm,
    resize=resize_normalized_shape,
    attributes=normalized_shape_of,
    over_kept=layer_norm_over_kept,
    saved="default",
)
operators("_weight_norm", saved="default", check=check_weight_norm)
