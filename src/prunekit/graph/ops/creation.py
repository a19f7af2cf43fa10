"""Entries that are made: tensors from sizes and numbers, such as zeros, and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from prunekit.graph.captured import argument, set_argument, shape_of
from prunekit.graph.labels import Dim, Propagator, Value, result_shape
from prunekit.graph.ops.moves import laid, resize_shape
from prunekit.graph.ops.registry import Keeps, kept_along, operators


def like(propagator: Propagator, x: Value, *_: Any, **__: Any) -> Value:
    """Entries that are all alike, as many as x has."""
    zero = "zeros" in propagator.operator
    return tuple(dim._replace(zero=zero, origin=None) for dim in x)


def new_like(propagator: Propagator, x: Value, size: Sequence[int], *_: Any, **__: Any) -> Value:
    """Entries that are all alike, as many as the size says."""
    return made(propagator, size)


def made(propagator: Propagator, size: Sequence[int], *_: Any, **__: Any) -> Value:
    """Entries that are all alike: any of them can be taken out."""
    zero = "zeros" in propagator.operator
    return tuple(Dim(count, propagator.labels.new(count) if count > 1 else None, zero) for count in size)


def numbers(propagator: Propagator, *_: Any, **__: Any) -> Any:
    """Entries with a meaning of their own, which cannot be taken out."""
    return result_shape(propagator.val)


def check_one_hot(arguments: Mapping[str, Any]) -> None:
    """Refuse classes that are counted from the values."""
    if not arguments.get("num_classes", -1) >= 1:
        raise ValueError("the number of classes must be given")


operators("bernoulli full_like ones_like rand_like randn_like zeros_like", labels=like, saved="default")
operators("empty_like", labels=like)
operators("empty", labels=made, resize=resize_shape)
operators("full ones zeros", labels=made, resize=resize_shape, saved="default")
operators("new_full new_ones new_zeros", labels=new_like, resize=resize_shape, saved="default")
operators("_tensor_constant randperm tensor", labels=numbers)
operators("arange", labels=numbers, saved="default start start_step")
operators("eye", labels=numbers, saved="default m")
operators("linspace scalar_tensor", labels=numbers, saved="default")
operators("rand randn", labels=numbers, resize=resize_shape)
operators("exponential normal_functional tril_indices triu_indices uniform zero", saved="default")
operators("fill", saved="Scalar Tensor")
operators("new_empty", resize=resize_shape)
operators("one_hot", saved="default", check=check_one_hot)


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
operators("replication_pad3d", saved="default")
