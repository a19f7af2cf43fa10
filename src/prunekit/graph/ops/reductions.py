"""Sums, means and the like along axes; softmax and attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from prunekit.graph.captured import argument, shape_of
from prunekit.graph.labels import Dim, Propagator, Value, position, result_shape
from prunekit.graph.ops.pointwise import aligned
from prunekit.graph.ops.registry import Keeps, always, kept_along, operators, taken

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


def attention(
    propagator: Propagator,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Value:
    """query (..., heads, T, d), key and value (..., heads, S, d): heads go together, so do widths."""
    propagator.freeze([key[-2], value[-2]], "is shared out")
    propagator.join(key[-2], value[-2])
    width = Dim(query[-1].size, propagator.join(query[-1], key[-1]), query[-1].zero or key[-1].zero)
    if width.labels is not None:
        propagator.hint("head width", width.labels)
        if not width.zero:
            propagator.freeze([width], "is summed over where it need not be zero")
    propagator.hint("head width", value[-1].labels)
    lead = [dim._replace(zero=False) for dim in _heads(propagator, query, key, value, enable_gqa)]
    if lead:
        propagator.hint("heads", lead[-1].labels)
    out = (*lead, query[-2]._replace(zero=False), value[-1])
    if mask is not None:
        shares = (*lead, query[-2], Dim(key[-2].size))
        aligned(propagator, [shares, mask], all)
    zero = value[-3].zero if len(value) > 2 else False
    return tuple(
        dim._replace(zero=zero if index == len(out) - 3 else dim.zero, origin=None)
        for index, dim in enumerate(out)
    )


def _heads(propagator: Propagator, query: Value, key: Value, value: Value, grouped: bool) -> list[Dim]:
    lead = []
    for index, dims in enumerate(zip(query[:-2], key[:-2], value[:-2], strict=True)):
        q, k, v = dims
        if grouped and index == len(query) - 3 and q.size != k.size:
            times = q.size // k.size
            shared = propagator.join(k, v)
            k = v = Dim(q.size, None if shared is None else shared.repeat(times), v.zero)
        wide = [dim for dim in (q, k, v) if dim.size == max(q.size, k.size, v.size)]
        lead.append(Dim(wide[0].size, propagator.join_all(wide), v.zero))
    return lead


def set_scale(node: fx.Node, keeps: Keeps) -> None:
    """The temperature stays that of the full width."""
    width = shape_of(node.args[0])[-1]
    if node.kwargs.get("scale") is None:
        node.update_kwarg("scale", 1 / math.sqrt(width))


def mean_over_kept(call: Callable[..., Any], node: fx.Node, args: Any, kwargs: Any, keeps: Keeps) -> Any:
    """A mean or variance over what stays along its axes."""
    x = args[0]
    for axis in named_axes(argument(node, "dim"), x.dim()):
        flags = kept_along(node.args[0], keeps, axis)
        if flags is not None:
            x = taken(x, axis, flags)
    return call(x, *args[1:], **kwargs)


operators("scaled_dot_product_attention", labels=attention, resize=set_scale, saved="default")
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
