"""Operators that pick entries by tensors of numbers or by masks, or write at such places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from prunekit.graph.labels import Dim, Propagator, Value, position, result_shape
from prunekit.graph.ops.moves import with_axis
from prunekit.graph.ops.pointwise import aligned
from prunekit.graph.ops.registry import ModuleSizes, operators

_moving = partial(operators, moves=True)


def embedding(propagator: Propagator, weight: Value, index: Value, *_: Any, **__: Any) -> Value:
    """weight (entries, width), one row for each index."""
    propagator.freeze([weight[0]], "is looked up by the input")
    propagator.freeze(index, "is looked up with")
    if weight[1].origin is not None:
        propagator.hint("embedding", weight[1].labels)
    return (*(Dim(dim.size) for dim in index), weight[1]._replace(origin=None))


def index(propagator: Propagator, x: Value, indices: Sequence[Value | None]) -> Any:
    """Entries of some axes picked by tensors; the axes that are not picked stay."""
    picked = [axis for axis, _ in _picked(propagator, indices)]
    if not picked or picked != list(range(picked[0], picked[-1] + 1)):
        return propagator.unknown("is indexed")
    propagator.freeze([x[axis] for axis in picked], "is indexed by a tensor")
    for each in indices:
        propagator.freeze(each or (), "is an index")
    shape = [int(size) for size in propagator.val.shape]
    behind = len(x) - picked[-1] - 1
    middle = shape[picked[0] : len(shape) - behind]
    rest = [dim._replace(origin=None) for dim in x]
    return (*rest[: picked[0]], *(Dim(size) for size in middle), *rest[len(x) - behind :])


def _picked(propagator: Propagator, indices: Sequence[Value | None]) -> list[tuple[int, Dim | None]]:
    """The axes that indices pick from, with the axis of the mask, if it is one, that lies along each."""
    found: list[tuple[int, Dim | None]] = []
    axis = 0
    for each, node in zip(indices, propagator.argument("indices"), strict=True):
        if each is None:
            axis += 1
        elif node.meta["val"].dtype in (torch.bool, torch.uint8):
            found += [(axis + place, dim) for place, dim in enumerate(each)]
            axis += len(each)
        else:
            found.append((axis, None))
            axis += 1
    return found


def index_put(
    propagator: Propagator, x: Value, indices: Sequence[Value | None], values: Value, *_: Any, **__: Any
) -> Value:
    """Values written at places: one number at those of masks, or rows at those that tensors name."""
    result = [dim._replace(zero=False, origin=None) for dim in x]
    picked = _picked(propagator, indices)
    if all(mask is not None for _, mask in picked) and all(dim.size == 1 for dim in values):
        for axis, mask in picked:
            assert mask is not None
            result[axis] = result[axis]._replace(labels=propagator.join(x[axis], mask))
        return tuple(result)
    for each in indices:
        propagator.freeze(each or (), "is an index")
    axes = [axis for axis, _ in picked]
    propagator.freeze([x[axis] for axis in axes], "is written at places")
    behind = len(x) - max(axes, default=-1) - 1
    rows = max(len(values) - behind, 0)
    propagator.freeze(values[:rows], "is written at places")
    for axis in axes:
        result[axis] = Dim(x[axis].size)
    met = aligned(propagator, [tuple(result[len(x) - behind :]), values[rows:]], all)
    return (*result[: len(x) - behind], *met)


def picked_along(propagator: Propagator, x: Value, dim: int, index: Value, *_: Any, **__: Any) -> Value:
    """One entry of an axis for each entry of an index; the other axes of the two meet."""
    axis = position(dim, len(x))
    propagator.freeze([x[axis], index[axis]], "is indexed by a tensor")
    met = _met(propagator, [x], [index], axis)
    return with_axis(met, axis, Dim(index[axis].size))


def written_along(
    propagator: Propagator, x: Value, dim: int, index: Value, source: Any = None, *_: Any, **__: Any
) -> Value:
    """Entries written to, or added at, places along an axis; the other axes of all of them meet."""
    axis = position(dim, len(x))
    numbers = [x, source] if isinstance(source, tuple) and len(source) == len(x) else [x]
    propagator.freeze([value[axis] for value in (*numbers, index)], "is written at places")
    met = _met(propagator, numbers, [index], axis)
    if len(numbers) == 1:
        met = tuple(dim._replace(zero=False) for dim in met)
    return with_axis(met, axis, Dim(x[axis].size))


def rows_written(
    propagator: Propagator, x: Value, dim: int, index: Value, source: Value, *_: Any, **__: Any
) -> Value:
    """Whole slices written to, or added at, places along an axis."""
    axis = position(dim, len(x))
    propagator.freeze([x[axis], *index, source[axis]], "is written at places")
    met = _met(propagator, [x, source], [], axis)
    return with_axis(met, axis, Dim(x[axis].size))


def index_fill(propagator: Propagator, x: Value, dim: int, index: Value, value: Any) -> Value:
    """Whole slices along an axis set to a number."""
    axis = position(dim, len(x))
    propagator.freeze([x[axis], *index], "is written at places")
    rest = tuple(each._replace(zero=each.zero and value == 0, origin=None) for each in x)
    return with_axis(rest, axis, Dim(x[axis].size))


def _met(propagator: Propagator, numbers: Sequence[Value], others: Sequence[Value], axis: int) -> Value:
    """The first value, whose axes but one meet those of the others; where these are shorter, all stay.

    Args:
        propagator: the state of the propagation.
        numbers: what the entries come from.
        others: what says where they are.
        axis: the one.
    """
    result = []
    for place, dims in enumerate(zip(*numbers, *others, strict=True)):
        if place == axis:
            result.append(dims[0])
        elif any(dim.size != dims[0].size for dim in dims):
            propagator.freeze(dims, "is indexed in part")
            result.append(Dim(dims[0].size))
        else:
            zero = all(value[place].zero for value in numbers)
            result.append(Dim(dims[0].size, propagator.join_all(dims), zero))
    return tuple(result)


def embedding_bag(propagator: Propagator, weight: Value, *rest: Any, **_: Any) -> list[Value]:
    """Sums, means or maxima of rows of a weight (entries, width), and where they come from."""
    propagator.freeze([weight[0]], "is looked up by the input")
    for each in rest:
        if isinstance(each, tuple):
            propagator.freeze(each, "is looked up with")
    propagator.hint("embedding", weight[1].labels)
    first, *others = result_shape(propagator.val)
    return [(first[0], weight[1]._replace(origin=None)), *others]


def index_select(propagator: Propagator, x: Value, dim: int, index: Value) -> Value:
    """Entries of one axis picked by a tensor."""
    axis = position(dim, len(x))
    propagator.freeze([x[axis], *index], "is indexed by a tensor")
    return with_axis(x, axis, Dim(index[0].size if index else 1))


def check_indices(arguments: Mapping[str, Any]) -> None:
    """Refuse masks: how many entries they pick depends on their values."""
    for index in arguments["indices"]:
        if index is not None and index.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"an index is of {index.dtype}, whose result's shape depends on values")


_moving(
    "embedding",
    labels=embedding,
    module_sizes=ModuleSizes((nn.Embedding,), {"weight": ("num_embeddings", "embedding_dim")}),
    saved="default",
)
_moving("index", labels=index, saved="Tensor", check=check_indices)
_moving("index_select", labels=index_select, saved="default")
operators("gather", labels=picked_along, saved="default")
operators("index_add index_copy", labels=rows_written, saved="default")
operators("index_fill", labels=index_fill, saved="int_Scalar int_Tensor")
operators("index_put", labels=index_put, saved="default", check=check_indices)
operators("masked_scatter take take_along_dim", saved="default")
operators("scatter", labels=written_along, saved="reduce src value value_reduce")
operators("scatter_add", labels=written_along, saved="default")
operators("scatter_reduce", labels=written_along, saved="two")
_moving(
    "embedding_bag",
    labels=embedding_bag,
    module_sizes=ModuleSizes((nn.EmbeddingBag,), {"weight": ("num_embeddings", "embedding_dim")}),
)
