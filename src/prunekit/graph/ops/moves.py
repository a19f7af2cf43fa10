"""Operators that move or pick entries and do not compute: they move the labels the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx

from prunekit.graph.captured_graph import argument, set_argument, shape_of
from prunekit.graph.labels import Dim, Propagator, Value, position, reshaped, rows_joined
from prunekit.graph.ops.registry import Keeps, kept_along, new_shape, operators

MAX_DIFFERENCES = 64
"""The highest order of `diff` in a saved graph."""
RESHAPED: Mapping[Any, Any] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.view_as.default: torch.ops.aten.reshape_as.default,
}
"""Views that ask for a layout of memory, and the same without asking.

A graph holds no `contiguous` that had nothing to do when it was captured. Tensors of other sizes or without
data may be laid out in another order: attention gives another where its keys and values differ in width.
"""


def view(propagator: Propagator, x: Value, *_: Any, **__: Any) -> Value:
    """Another shape, the same order of entries."""
    return reshaped(propagator, x, [int(size) for size in propagator.val.shape])


def permute(propagator: Propagator, x: Value, dims: Sequence[int]) -> Value:
    """The axes in another order."""
    return tuple(x[position(dim, len(x))] for dim in dims)


def transpose(propagator: Propagator, x: Value, a: int, b: int) -> Value:
    """Two axes swapped."""
    axes = list(x)
    a, b = position(a, len(x)), position(b, len(x))
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


def turned(propagator: Propagator, x: Value) -> Value:
    """The last two axes swapped; a vector stays."""
    return x if len(x) < 2 else (*x[:-2], x[-1], x[-2])


def movedim(propagator: Propagator, x: Value, source: Any, target: Any) -> Value:
    """Axes at other places."""
    froms = [position(dim, len(x)) for dim in np.atleast_1d(source).tolist()]
    tos = [position(dim, len(x)) for dim in np.atleast_1d(target).tolist()]
    rest = [axis for axis in range(len(x)) if axis not in froms]
    order = dict(zip(tos, froms, strict=True))
    return tuple(x[order[axis] if axis in order else rest.pop(0)] for axis in range(len(x)))


def with_axis(value: Value, axis: int, dim: Dim) -> Value:
    """The tensor with another axis in the place of one."""
    return (*value[:axis], dim, *value[axis + 1 :])


def _picked(dim: Dim, where: Any) -> Dim:
    size = len(range(dim.size)[where]) if isinstance(where, slice) else len(where)
    if size == dim.size and isinstance(where, slice) and where.step in (None, 1):
        return dim
    labels = None if dim.labels is None else dim.labels[where]
    return Dim(size, labels if size > 0 else None, dim.zero)


def sliced(
    propagator: Propagator,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    """A stretch of one axis, or every so many of its entries: those go together up to the next one."""
    axis = position(dim, len(x))
    old = x[axis]
    if step > 1 and old.labels is not None:
        rows = None if old.size % step else rows_joined(propagator, old.labels.reshape(-1, step))
        if rows is None:
            old = propagator.fix(old, "is read in steps")
        else:
            old = old._replace(labels=rows.repeat(step))
    return with_axis(x, axis, _picked(old, slice(start, end, step)))


def narrow(propagator: Propagator, x: Value, dim: int, start: int, length: int) -> Value:
    """A stretch of one axis."""
    return sliced(propagator, x, dim, start, start + length)


def select(propagator: Propagator, x: Value, dim: int, index: int) -> Value:
    """One entry of an axis, which has to stay."""
    axis = position(dim, len(x))
    labels = x[axis].labels
    if labels is not None:
        propagator.labels.freeze(labels, f"is read entry by entry at {propagator.where}")
    return (*x[:axis], *x[axis + 1 :])


def unbind(propagator: Propagator, x: Value, dim: int = 0) -> list[Value]:
    """All entries of an axis one by one."""
    return [select(propagator, x, dim, index) for index in range(x[position(dim, len(x))].size)]


def pieces(propagator: Propagator, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """Stretches of one axis."""
    axis = position(dim, len(x))
    pieces, start = [], 0
    for val in propagator.val:
        size = int(val.shape[axis])
        pieces.append(with_axis(x, axis, _picked(x[axis], slice(start, start + size))))
        start += size
    return pieces


def cat(propagator: Propagator, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors one after the other along an axis."""
    tensors = [tensor for tensor in tensors if len(tensor) != 1 or tensor[0].size]
    axis = position(dim, len(tensors[0]))
    result = []
    for index in range(len(tensors[0])):
        dims = [tensor[index] for tensor in tensors]
        if index == axis:
            result.append(laid(dims))
        else:
            result.append(Dim(dims[0].size, propagator.join_all(dims), all(each.zero for each in dims)))
    return tuple(result)


def laid(dims: Sequence[Dim]) -> Dim:
    """Axes one after the other; entries that cannot be taken out have label 0."""
    size = sum(dim.size for dim in dims)
    if all(dim.labels is None for dim in dims):
        return Dim(size)
    parts = [np.zeros(dim.size, dtype=np.int64) if dim.labels is None else dim.labels for dim in dims]
    return Dim(size, np.concatenate(parts), all(dim.zero for dim in dims if dim.labels is not None))


def stack(propagator: Propagator, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors side by side along a new axis, which cannot change."""
    axis = position(dim, len(tensors[0]) + 1)
    joined = [
        Dim(dims[0].size, propagator.join_all(dims), all(each.zero for each in dims))
        for dims in zip(*tensors, strict=True)
    ]
    return (*joined[:axis], Dim(len(tensors)), *joined[axis:])


def flip(propagator: Propagator, x: Value, dims: Sequence[int]) -> Value:
    """Axes the other way round."""
    for dim in dims:
        axis = position(dim, len(x))
        x = with_axis(x, axis, _picked(x[axis], slice(None, None, -1)))
    return x


def rot90(propagator: Propagator, x: Value, k: int = 1, dims: Sequence[int] = (0, 1)) -> Value:
    """A plane of two axes turned by `k` quarters: each quarter swaps the axes and reverses the first."""
    first, second = (position(dim, len(x)) for dim in dims)
    for _ in range(k % 4):
        x = flip(propagator, transpose(propagator, x, first, second), [first])
    return x


def roll(propagator: Propagator, x: Value, shifts: Any, dims: Any = ()) -> Value:
    """Axes turned round; a turn in the middle of what can be taken out cannot be corrected."""
    if not np.atleast_1d(dims).size:
        return tuple(propagator.fix(dim, "is rolled") for dim in x)
    for shift, dim in zip(np.atleast_1d(shifts).tolist(), np.atleast_1d(dims).tolist(), strict=True):
        axis = position(dim, len(x))
        labels = x[axis].labels
        if labels is not None:
            x = with_axis(x, axis, Dim(x[axis].size, np.roll(labels, shift), x[axis].zero))
    return x


def expand(propagator: Propagator, x: Value, *_: Any, **__: Any) -> Value:
    """Axes of size 1 made wide: all their entries are alike, so that any can be taken out."""
    shape = [int(size) for size in propagator.val.shape]
    lead = len(shape) - len(x)
    result = []
    for axis, size in enumerate(shape):
        old = x[axis - lead] if axis >= lead else Dim(1)
        if old.size != size:
            propagator.freeze([old], "is one entry that is repeated")
            old = Dim(size, propagator.labels.new(size))
        result.append(old)
    return tuple(result)


def repeat(propagator: Propagator, x: Value, repeats: Sequence[int]) -> Value:
    """The tensor several times along its axes."""
    lead = max(len(repeats) - len(x), 0)
    repeats = [1] * (len(x) - len(repeats)) + list(repeats)
    result = []
    for axis, times in enumerate(repeats):
        old = x[axis - lead] if axis >= lead else Dim(1)
        if old.size == 1 and times > 1:
            propagator.freeze([old], "is one entry that is repeated")
            result.append(Dim(times, propagator.labels.new(times)))
        elif times == 1:
            result.append(old)
        else:
            labels = None if old.labels is None else np.tile(old.labels, times)
            result.append(Dim(old.size * times, labels, old.zero))
    return tuple(result)


def repeat_interleave(
    propagator: Propagator, x: Value, repeats: Any, dim: int | None = None, **_: Any
) -> Any:
    """Each entry of an axis several times."""
    if not isinstance(repeats, int) or dim is None:
        return propagator.unknown("is repeated")
    axis = position(dim, len(x))
    return with_axis(x, axis, widened(x[axis], repeats))


def widened(dim: Dim, times: int) -> Dim:
    """An axis each of whose entries stands several times in a row."""
    return Dim(dim.size * times, None if dim.labels is None else dim.labels.repeat(times), dim.zero)


def resize_shape(node: fx.Node, keeps: Keeps) -> None:
    """The first list of whole numbers among the arguments is the new shape; -1 stays."""
    new = new_shape(node, keeps)
    if new == [int(size) for size in node.meta["val"].shape]:
        return
    for place, arg in enumerate(node.args):
        if isinstance(arg, (list, tuple)) and all(isinstance(size, int) for size in arg):
            lead = len(new) - len(arg)
            node.update_arg(place, [old if old == -1 else new[lead + axis] for axis, old in enumerate(arg)])
            return


def resize_unflatten(node: fx.Node, keeps: Keeps) -> None:
    """The sizes that an axis is cut into."""
    axis, sizes = position(argument(node, "dim"), len(shape_of(node.args[0]))), argument(node, "sizes")
    new = new_shape(node, keeps)[axis : axis + len(sizes)]
    set_argument(node, "sizes", [old if old == -1 else size for old, size in zip(sizes, new, strict=True)])


def resize_repeats(node: fx.Node, keeps: Keeps) -> None:
    """How often an axis of size 1 is repeated is its new size."""
    repeats, shape, new = list(argument(node, "repeats")), shape_of(node.args[0]), new_shape(node, keeps)
    lead = len(repeats) - len(shape)
    for axis, times in enumerate(repeats):
        if times > 1 and (axis < lead or shape[axis - lead] == 1):
            repeats[axis] = new[axis]
    set_argument(node, "repeats", repeats)


def resize_pieces(node: fx.Node, keeps: Keeps) -> None:
    """Pieces of sizes that may differ, whatever was asked for before."""
    x, dim = node.args[0], argument(node, "dim")
    axis = position(dim, len(shape_of(x)))
    if kept_along(x, keeps, axis) is None:
        return
    sizes = []
    for value, axes in zip(node.meta["val"], keeps(node), strict=True):
        flags = axes[axis]
        sizes.append(int(value.shape[axis]) if flags is None else int(flags.sum()))
    node.target = torch.ops.aten.split_with_sizes.default
    node.args, node.kwargs = (x, sizes, dim), {}


def resize_slice(node: fx.Node, keeps: Keeps) -> None:
    """Start and end, counted among what stays."""
    axis = position(argument(node, "dim"), len(shape_of(node.args[0])))
    flags, step = kept_along(node.args[0], keeps, axis), argument(node, "step")
    if flags is None:
        return
    start, end, _ = slice(argument(node, "start"), argument(node, "end"), step).indices(flags.size)
    offset = start % step  # entries go in whole stretches of a step
    set_argument(node, "start", int(flags[: start - offset].sum()) + offset)
    set_argument(node, "end", int(flags[:end].sum()))


def resize_narrow(node: fx.Node, keeps: Keeps) -> None:
    """Start and length, counted among what stays."""
    x, dim, start, length = node.args
    flags = kept_along(x, keeps, position(dim, len(shape_of(x))))  # type: ignore[arg-type]
    if flags is not None and isinstance(start, int) and isinstance(length, int):
        node.args = (x, dim, int(flags[:start].sum()), int(flags[start : start + length].sum()))


def resize_shifts(node: fx.Node, keeps: Keeps) -> None:
    """As many entries go round as stay of those that went round."""
    x, shape = node.args[0], shape_of(node.args[0])
    shifts, dims = (np.atleast_1d(argument(node, name)).tolist() for name in ("shifts", "dims"))
    if not dims:
        return  # of what is rolled as a whole nothing can be taken out
    new = []
    for shift, dim in zip(shifts, dims, strict=True):
        axis = position(dim, len(shape))
        flags, size = kept_along(x, keeps, axis), shape[axis]
        new.append(shift if flags is None else int(flags[size - shift % size :].sum()) if shift % size else 0)
    set_argument(node, "shifts", new)
    set_argument(node, "dims", dims)


def unfolded(propagator: Propagator, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows along an axis, which lie along a new last one."""
    axis = position(dim, len(x))
    propagator.freeze([x[axis]], "is read in windows")
    windows = Dim(int(propagator.val.shape[axis]))
    return (*with_axis(tuple(each._replace(origin=None) for each in x), axis, windows), Dim(size))


def triangular(propagator: Propagator, x: Value, *_: Any, **__: Any) -> Value:
    """Zeros on one side of the diagonal of the last two axes, which so have a place."""
    propagator.freeze(x[-2:], "has zeros by its place")
    return (*x[:-2], *(Dim(dim.size) for dim in x[-2:]))


def check_diff(arguments: Mapping[str, Any]) -> None:
    """Refuse differences of so high an order that they take for ever."""
    if not 0 <= arguments.get("n", 1) <= MAX_DIFFERENCES:
        raise ValueError(f"n = {arguments['n']} is not in [0, {MAX_DIFFERENCES}]")


_moving = partial(operators, moves=True)
_moving("cat concat concatenate", labels=cat, saved="default")
_moving("expand_as", labels=expand, saved="default")
_moving("broadcast_to expand", labels=expand, resize=resize_shape, saved="default")
_moving("expand_copy", labels=expand)
_moving("flip", labels=flip, saved="default")
_moving("moveaxis movedim", labels=movedim, saved="int intlist")
_moving("narrow", labels=narrow, resize=resize_narrow, saved="default")
_moving("permute", labels=permute, passes_units=True, saved="default")
_moving("permute_copy", labels=permute)
_moving("repeat", labels=repeat, resize=resize_repeats, saved="default")
_moving("tile", labels=repeat, saved="default")
_moving("repeat_interleave", labels=repeat_interleave, saved="self_int")
_moving("rot90", labels=rot90, saved="default")
_moving("roll", labels=roll, resize=resize_shifts, saved="default")
_moving("select", labels=select, saved="int")
_moving("select_copy", labels=select)
_moving("slice", labels=sliced, resize=resize_slice, saved="Tensor")
_moving("slice_copy", labels=sliced)
_moving("stack", labels=stack, saved="default")
_moving("swapaxes swapdims", labels=transpose, saved="default")
_moving("transpose", labels=transpose, passes_units=True, saved="int")
_moving("adjoint mH mT matrix_H numpy_T t", labels=turned, saved="default")
_moving("_unsafe_view", labels=view, resize=resize_shape)
_moving("flatten", labels=view, passes_units=True, saved="using_ints")
_moving("reshape", labels=view, resize=resize_shape, passes_units=True, saved="default")
_moving("reshape_as unsqueeze", labels=view, saved="default")
_moving("squeeze", labels=view, saved="default dim dims")
_moving("unflatten", labels=view, resize=resize_unflatten, saved="int")
_moving("view", labels=view, resize=resize_shape, passes_units=True)
_moving("view_as _reshape_alias _reshape_copy unsafe_view view_copy", labels=view)
_moving("atleast_1d atleast_2d", labels=view, saved="default")

_cutting = partial(_moving, labels=pieces, resize=resize_pieces)
_cutting(
    "chunk unsafe_chunk",
    saved="default",
    results={"default": lambda x, chunks, dim=0: min(chunks, x.shape[dim])},
)
_by_size = {"Tensor": lambda x, size, dim=0: x.shape[dim] // max(size, 1)}  # but for the last piece
_cutting("split", saved="Tensor sizes", results=_by_size)
_cutting("unsafe_split", saved="Tensor", results=_by_size)
_cutting("split_with_sizes", saved="default")
_cutting("split_copy")
_cutting("tensor_split", saved="indices sections", results={"sections": lambda x, sections, dim=0: sections})
_moving("unbind", labels=unbind, saved="int", results={"int": lambda x, dim=0: x.shape[dim]})
operators("hsplit vsplit", saved="array int", results={"int": lambda x, sections: sections})
operators(
    """
    atleast_3d broadcast_tensors diag diag_embed diagonal diagonal_scatter dstack hstack lift_fresh_copy
    select_scatter slice_scatter vstack
    """,
    saved="default",
)
_moving("unfold", labels=unfolded, saved="default")
operators("tril triu", labels=triangular, saved="default")
operators("diff", saved="default", check=check_diff)
operators("meshgrid", saved="default indexing")
