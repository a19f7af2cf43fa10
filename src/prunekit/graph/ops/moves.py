"""Operators that move entries and do not compute: they move the labels the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunekit.graph.blocks import reshaped, rows_joined
from prunekit.graph.ops.registry import rule
from prunekit.graph.values import Dim, Value, position
from prunekit.graph.walker import Walker


def _shape(walker: Walker) -> list[int]:
    return [int(size) for size in walker.val.shape]


@rule(
    "view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as", "squeeze", "unsqueeze"
)
def view(walker: Walker, x: Value, *_: Any, **__: Any) -> Value:
    """Another shape, the same order of entries."""
    return reshaped(walker, x, _shape(walker))


@rule("_reshape_alias", "_reshape_copy", "view_copy", "atleast_1d", "atleast_2d", "unsafe_view")
def view_copy(walker: Walker, x: Value, *_: Any, **__: Any) -> Value:
    """Another shape, the same order of entries."""
    return reshaped(walker, x, _shape(walker))


@rule("permute", "permute_copy")
def permute(walker: Walker, x: Value, dims: Sequence[int]) -> Value:
    """The axes in another order."""
    return tuple(x[position(dim, len(x))] for dim in dims)


@rule("transpose", "swapaxes", "swapdims")
def transpose(walker: Walker, x: Value, a: int, b: int) -> Value:
    """Two axes swapped."""
    axes = list(x)
    a, b = position(a, len(x)), position(b, len(x))
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


@rule("t", "numpy_T", "mT", "matrix_H", "adjoint", "mH")
def turned(walker: Walker, x: Value) -> Value:
    """The last two axes swapped; a vector stays."""
    return x if len(x) < 2 else (*x[:-2], x[-1], x[-2])


@rule("movedim", "moveaxis")
def movedim(walker: Walker, x: Value, source: Any, target: Any) -> Value:
    """Axes at other places."""
    froms = [position(dim, len(x)) for dim in np.atleast_1d(source).tolist()]
    tos = [position(dim, len(x)) for dim in np.atleast_1d(target).tolist()]
    rest = [axis for axis in range(len(x)) if axis not in froms]
    order = dict(zip(tos, froms, strict=True))
    return tuple(x[order[axis] if axis in order else rest.pop(0)] for axis in range(len(x)))


def _with(value: Value, axis: int, dim: Dim) -> Value:
    return (*value[:axis], dim, *value[axis + 1 :])


def _picked(dim: Dim, where: Any) -> Dim:
    size = len(range(dim.size)[where]) if isinstance(where, slice) else len(where)
    if size == dim.size and isinstance(where, slice) and where.step in (None, 1):
        return dim
    labels = None if dim.labels is None else dim.labels[where]
    return Dim(size, labels if size > 0 else None, dim.zero)


@rule("slice", "slice_copy")
def sliced(
    walker: Walker, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """A stretch of one axis, or every so many of its entries: those go together up to the next one."""
    axis = position(dim, len(x))
    old = x[axis]
    if step > 1 and old.labels is not None:
        rows = None if old.size % step else rows_joined(walker, old.labels.reshape(-1, step))
        old = walker.fix(old, "is read in steps") if rows is None else old._replace(labels=rows.repeat(step))
    return _with(x, axis, _picked(old, slice(start, end, step)))


@rule("narrow")
def narrow(walker: Walker, x: Value, dim: int, start: int, length: int) -> Value:
    """A stretch of one axis."""
    return sliced(walker, x, dim, start, start + length)


@rule("select", "select_copy")
def select(walker: Walker, x: Value, dim: int, index: int) -> Value:
    """One entry of an axis, which has to stay."""
    axis = position(dim, len(x))
    labels = x[axis].labels
    if labels is not None:
        walker.labels.freeze(labels, f"is read entry by entry at {walker.where}")
    return (*x[:axis], *x[axis + 1 :])


@rule("unbind")
def unbind(walker: Walker, x: Value, dim: int = 0) -> list[Value]:
    """All entries of an axis one by one."""
    return [select(walker, x, dim, index) for index in range(x[position(dim, len(x))].size)]


def _pieces(walker: Walker, x: Value, dim: int) -> list[Value]:
    axis = position(dim, len(x))
    pieces, start = [], 0
    for val in walker.val:
        size = int(val.shape[axis])
        pieces.append(_with(x, axis, _picked(x[axis], slice(start, start + size))))
        start += size
    return pieces


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy")
def pieces(walker: Walker, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """Stretches of one axis."""
    return _pieces(walker, x, dim)


@rule("hsplit", "vsplit")
def not_followed(walker: Walker, *_: Any, **__: Any) -> Any:
    """Seldom met."""
    return walker.unknown("is cut")


@rule("cat", "concat", "concatenate")
def cat(walker: Walker, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors one after the other along an axis."""
    tensors = [tensor for tensor in tensors if len(tensor) != 1 or tensor[0].size]
    axis = position(dim, len(tensors[0]))
    result = []
    for index in range(len(tensors[0])):
        dims = [tensor[index] for tensor in tensors]
        if index == axis:
            result.append(laid(dims))
        else:
            result.append(Dim(dims[0].size, walker.join_all(dims), all(each.zero for each in dims)))
    return tuple(result)


def laid(dims: Sequence[Dim]) -> Dim:
    """Axes one after the other; entries that cannot be taken out have label 0."""
    size = sum(dim.size for dim in dims)
    if all(dim.labels is None for dim in dims):
        return Dim(size)
    parts = [np.zeros(dim.size, dtype=np.int64) if dim.labels is None else dim.labels for dim in dims]
    return Dim(size, np.concatenate(parts), all(dim.zero for dim in dims if dim.labels is not None))


@rule("stack")
def stack(walker: Walker, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors side by side along a new axis, which cannot change."""
    axis = position(dim, len(tensors[0]) + 1)
    joined = [
        Dim(dims[0].size, walker.join_all(dims), all(each.zero for each in dims))
        for dims in zip(*tensors, strict=True)
    ]
    return (*joined[:axis], Dim(len(tensors)), *joined[axis:])


@rule("flip")
def flip(walker: Walker, x: Value, dims: Sequence[int]) -> Value:
    """Axes the other way round."""
    for dim in dims:
        axis = position(dim, len(x))
        x = _with(x, axis, _picked(x[axis], slice(None, None, -1)))
    return x


@rule("roll")
def roll(walker: Walker, x: Value, shifts: Any, dims: Any = ()) -> Value:
    """Axes turned round; a turn in the middle of what can be taken out cannot be corrected."""
    if not np.atleast_1d(dims).size:
        return tuple(walker.fix(dim, "is rolled") for dim in x)
    for shift, dim in zip(np.atleast_1d(shifts).tolist(), np.atleast_1d(dims).tolist(), strict=True):
        axis = position(dim, len(x))
        labels = x[axis].labels
        if labels is not None:
            x = _with(x, axis, Dim(x[axis].size, np.roll(labels, shift), x[axis].zero))
    return x


@rule("expand", "expand_as", "broadcast_to", "expand_copy")
def expand(walker: Walker, x: Value, *_: Any, **__: Any) -> Value:
    """Axes of size 1 made wide: all their entries are alike, so that any can be taken out."""
    shape = _shape(walker)
    lead = len(shape) - len(x)
    result = []
    for axis, size in enumerate(shape):
        old = x[axis - lead] if axis >= lead else Dim(1)
        wide = Dim(size, walker.labels.new(size)) if size > 1 else old
        result.append(old if old.size == size else wide)
    return tuple(result)


@rule("repeat", "tile")
def repeat(walker: Walker, x: Value, repeats: Sequence[int]) -> Value:
    """The tensor several times along its axes."""
    lead = max(len(repeats) - len(x), 0)
    repeats = [1] * (len(x) - len(repeats)) + list(repeats)
    result = []
    for axis, times in enumerate(repeats):
        old = x[axis - lead] if axis >= lead else Dim(1)
        if old.size == 1 and times > 1:
            result.append(Dim(times, walker.labels.new(times)))
        elif times == 1:
            result.append(old)
        else:
            labels = None if old.labels is None else np.tile(old.labels, times)
            result.append(Dim(old.size * times, labels, old.zero))
    return tuple(result)


@rule("repeat_interleave")
def repeat_interleave(walker: Walker, x: Value, repeats: Any, dim: int | None = None, **_: Any) -> Any:
    """Each entry of an axis several times."""
    if not isinstance(repeats, int) or dim is None:
        return walker.unknown("is repeated")
    axis = position(dim, len(x))
    labels = x[axis].labels
    wide = None if labels is None else labels.repeat(repeats)
    return _with(x, axis, Dim(x[axis].size * repeats, wide, x[axis].zero))
