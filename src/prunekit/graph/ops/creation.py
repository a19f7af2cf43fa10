"""Tensors made from sizes and numbers: zeros, ranges, random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunekit.graph.labels import Dim, Value
from prunekit.graph.ops.moves import resize_shape
from prunekit.graph.ops.registry import operators
from prunekit.graph.propagator import Propagator, result_shape


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
