"""What runs along axes: sums, means and the like, searches, softmax, and normalisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from prunekit.graph.captured_graph import argument, set_argument
from prunekit.graph.labels import GROUPS, Dim, Propagator, Value, merged, position, result_shape, split
from prunekit.graph.ops.pointwise import aligned
from prunekit.graph.ops.registry import (
    Keeps,
    ModuleSizes,
    always,
    groups_left,
    kept_along,
    new_shape,
    operators,
    resize_groups,
    spread,
    taken,
)

_STATISTICS = {"mean", "var", "std", "var_mean", "std_mean"}
_SUMS = {"sum", "linalg_vector_norm", "norm", "frobenius_norm"}


def reduced(propagator: Propagator, x: Value, *_: Any, **__: Any) -> Any:
    """One number for all entries along the axes that go."""
    name = propagator.operator
    axes = named_axes(propagator.argument("dim"), len(x))
    for axis in axes:
        if x[axis].labels is None:
            continue
        if name in _STATISTICS:
            propagator.normalised(x[axis])
        elif not (name in _SUMS and x[axis].zero):
            propagator.freeze([x[axis]], "is taken over")
    still = name not in {"prod", "logsumexp"}
    rest = tuple(
        Dim(1) if axis in axes else dim._replace(zero=dim.zero and still, origin=None)
        for axis, dim in enumerate(x)
        if propagator.argument("keepdim") or axis not in axes
    )
    return [rest, rest] if isinstance(propagator.val, (tuple, list)) else rest


def named_axes(dim: int | Sequence[int] | None, rank: int) -> list[int]:
    """The axes that an argument `dim` names: all where there is none."""
    named = [dim] if isinstance(dim, int) else dim
    return [position(each, rank) for each in named] if named else list(range(rank))


def searched(propagator: Propagator, x: Value, other: Any = None, *_: Any, **__: Any) -> Any:
    """One axis is searched, the others stay; or the larger of two tensors is picked entry by entry."""
    if isinstance(other, tuple):
        return aligned(propagator, [x, other], all)
    val, dim = propagator.val, propagator.argument("dim")
    if not isinstance(dim, int):
        propagator.freeze(x, "is searched")
        return result_shape(val)
    axis = position(dim, len(x))
    propagator.freeze([x[axis]], "is searched")
    rest = [each._replace(zero=False, origin=None) for each in x]

    def shaped(val: Any) -> Value:
        left = [Dim(int(val.shape[axis]))] if len(val.shape) == len(x) else []
        return (*rest[:axis], *left, *rest[axis + 1 :])

    return [shaped(item) for item in val] if isinstance(val, (tuple, list)) else shaped(val)


def softmax(propagator: Propagator, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Shares along an axis, which cannot change."""
    axis = position(dim, len(x))
    propagator.freeze([x[axis]], "is shared out")
    return tuple(
        Dim(each.size) if index == axis else each._replace(zero=False, origin=None)
        for index, each in enumerate(x)
    )


def glu(propagator: Propagator, x: Value, dim: int = -1) -> Value:
    """The first half of an axis times the sigmoid of the second."""
    axis = position(dim, len(x))
    half = x[axis].size // 2
    labels = x[axis].labels
    joined = None
    if labels is not None:
        joined = propagator.join(Dim(half, labels[:half]), Dim(half, labels[half:]))
    return (*x[:axis], Dim(half, joined, x[axis].zero), *x[axis + 1 :])


def mean_over_kept(call: Callable[..., Any], node: fx.Node, args: Any, kwargs: Any, keeps: Keeps) -> Any:
    """A mean or variance over what stays along its axes."""
    x = args[0]
    for axis in named_axes(argument(node, "dim"), x.dim()):
        flags = kept_along(node.args[0], keeps, axis)
        if flags is not None:
            x = taken(x, axis, flags)
    return call(x, *args[1:], **kwargs)


operators("glu", labels=glu, saved="default")
operators("all any", labels=searched, saved="default dim dims")
operators("argmax argmin cumprod cumsum topk", labels=searched, saved="default")
operators("argsort sort", labels=searched, saved="default stable")
operators("max min", labels=searched, saved="default dim other")
operators("median", labels=searched, saved="default dim")
operators("amax amin", labels=reduced, saved="default")
operators("linalg_vector_norm logsumexp", labels=reduced, by_extent=always, saved="default")
operators("mean", labels=reduced, over_kept=mean_over_kept, saved="default dim")
operators(
    "norm",
    labels=reduced,
    by_extent=always,
    saved="Scalar ScalarOpt_dim ScalarOpt_dim_dtype ScalarOpt_dtype",
)
operators("prod", labels=reduced, by_extent=always, saved="default dim_int")
operators("std var var_mean", labels=reduced, over_kept=mean_over_kept, saved="correction default dim")
operators("sum", labels=reduced, by_extent=always, saved="default dim_IntList")
operators("_log_softmax _safe_softmax _softmax", labels=softmax, saved="default")
operators("log_softmax softmax", labels=softmax, saved="int")
operators("bucketize", saved="Tensor")
operators("cosine_similarity cummax cummin logcumsumexp pairwise_distance trace", saved="default")
operators("linalg_norm", saved="default ord_str")
operators("std_mean", over_kept=mean_over_kept, saved="correction default dim")


# ---- normalisations ----------------------------------------------------------------------------------------


def per_channel(propagator: Propagator, x: Value, *args: Any, **_: Any) -> Value:
    """x (N, C, ...), statistics for each channel; weight, bias, mean and variance are along the channels."""
    propagator.freeze(x[2:], "is normalised over")
    labels = propagator.join_all([x[1], *(value[0] for value in args[:4] if value is not None)])
    zero = args[0] is not None or x[1].zero
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
    whole, offsets = split(propagator, Dim(x[1].size, labels), [groups, x[1].size // groups], tag=GROUPS)
    propagator.normalised(offsets)
    channels = merged(propagator, [whole, offsets], tag=GROUPS)
    return (x[0], channels._replace(zero=weight is not None), *(Dim(dim.size) for dim in x[2:]))


def weight_norm(propagator: Propagator, v: Value, g: Value, dim: int = 0) -> Value:
    """v with norms g, one for each entry along `dim`, or, if that is -1, one for all.

    Where entries along another axis go, the norm is that of the rest, as it is of a v with zeros there. Along
    `dim` the norm is zero, and not v, by whose own norm it is divided.

    Salimans & Kingma 2016, Weight normalization, arXiv 1602.07868.
    """
    if dim == -1:
        return v
    labels = propagator.join(v[dim], g[dim])
    propagator.role(v[dim], "divisor")
    return (*v[:dim], g[dim]._replace(labels=labels), *v[dim + 1 :])


def resize_normalized_shape(node: fx.Node, keeps: Keeps) -> None:
    """The last axes that stay."""
    shape = argument(node, "normalized_shape")
    set_argument(node, "normalized_shape", new_shape(node, keeps)[-len(shape) :])


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


def features_of(module: nn.Module, node: fx.Node, keeps: Keeps) -> dict[str, Any]:
    """The channels of a batch or instance norm, which need not have parameters."""
    return {"num_features": new_shape(node, keeps)[1]} if isinstance(module, _NormBase) else {}


def normalized_shape_of(module: nn.Module, node: fx.Node, keeps: Keeps) -> dict[str, Any]:
    """Of a layer norm, which need not have parameters."""
    kind: Any = type(getattr(module, "normalized_shape", None))
    return {"normalized_shape": kind(argument(node, "normalized_shape"))} if kind is not type(None) else {}


def groups_of(module: nn.Module, node: fx.Node, keeps: Keeps) -> dict[str, Any]:
    """Of a group norm, which need not have parameters."""
    if not isinstance(module, nn.GroupNorm):
        return {}
    return {"num_groups": argument(node, "num_groups"), "num_channels": new_shape(node, keeps)[1]}


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


_channels = partial(
    operators,
    labels=per_channel,
    attributes=features_of,
    module_sizes=ModuleSizes(
        (_NormBase,), dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("num_features",))
    ),
    saved="default",
)
_channels("batch_norm", passes_units=True, check=partial(check_running_statistics, flag="training"))
_channels("instance_norm", check=partial(check_running_statistics, flag="use_input_stats"))
operators(
    "group_norm",
    labels=group_norm,
    resize=partial(resize_groups, name="num_groups"),
    attributes=groups_of,
    over_kept=group_norm_over_kept,
    saved="default",
)
_last_axes = partial(
    operators,
    resize=resize_normalized_shape,
    attributes=normalized_shape_of,
    over_kept=layer_norm_over_kept,
    saved="default",
)
_last_axes("layer_norm", labels=layer_norm)
_last_axes("rms_norm", labels=rms_norm)
operators("_weight_norm", labels=weight_norm, saved="default", check=check_weight_norm)
