"""Which parameters to multiply so that the value of a node is multiplied: back from it to the layers behind.

Scores of attention are products of queries and keys, so that a factor of the scores can be taken by the layer
that makes the queries: through views, splits, rotations and the scale of a norm.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from prunekit.graph.captured import argument, op_name, shape_of
from prunekit.graph.labels import Flags, position

Marks = list[tuple[fx.Node, Flags]]
"""Nodes with the entries of their values that are to be multiplied."""


def scaled_back(node: fx.Node) -> dict[fx.Node, Flags] | None:
    """The placeholders, and which entries of them are to be multiplied, so that all of a node's value is.

    Args:
        node: of a recorded graph.

    Returns:
        None where the way back meets something that a factor does not go through.
    """
    found: dict[fx.Node, Flags] = {}
    waiting: Marks = [(node, np.ones(shape_of(node), dtype=bool))]
    while waiting:
        each, marks = waiting.pop()
        if not marks.any():
            continue
        if each.op == "placeholder":
            found[each] = found.get(each, np.zeros(marks.shape, dtype=bool)) | marks
            continue
        rule = _item if each.target is operator.getitem else _RULES.get(op_name(each))
        before = None if rule is None else rule(each, marks)
        if before is None:
            return None
        waiting.extend(before)
    return found


def _first(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _same(node: fx.Node, marks: Flags) -> Marks:
    return [(_first(node), marks)]


def _reshaped(node: fx.Node, marks: Flags) -> Marks:
    return [(_first(node), marks.reshape(shape_of(_first(node))))]


def _permuted(node: fx.Node, marks: Flags) -> Marks:
    rank = marks.ndim
    order = [position(dim, rank) for dim in argument(node, "dims")]
    return [(_first(node), marks.transpose(np.argsort(order)))]


def _transposed(node: fx.Node, marks: Flags) -> Marks:
    return [(_first(node), marks.swapaxes(argument(node, "dim0"), argument(node, "dim1")))]


def _turned(node: fx.Node, marks: Flags) -> Marks:
    return [(_first(node), marks.swapaxes(-1, -2) if marks.ndim > 1 else marks)]


def _flipped(node: fx.Node, marks: Flags) -> Marks:
    return [(_first(node), np.flip(marks, tuple(argument(node, "dims"))))]


def _item(node: fx.Node, marks: Flags) -> Marks | None:
    """One of the values of a split or an unbind."""
    whole, number = _first(node), node.args[1]
    values = whole.meta["val"]
    source = _first(whole)
    if not isinstance(number, int) or not isinstance(source, fx.Node):
        return None
    axis = position(argument(whole, "dim"), len(shape_of(source)))
    if op_name(whole) == "unbind":
        return [(source, _placed(source, axis, number, np.expand_dims(marks, axis)))]
    if op_name(whole) not in ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk"):
        return None
    return [(source, _placed(source, axis, sum(each.shape[axis] for each in values[:number]), marks))]


def _placed(source: fx.Node, axis: int, start: int, marks: Flags, step: int = 1) -> Flags:
    """Marks among entries without, from a place along an axis on."""
    whole = np.zeros(shape_of(source), dtype=bool)
    end = start + step * marks.shape[axis]
    whole[(*[slice(None)] * axis, slice(start, end, step))] = marks
    return whole


def _selected(node: fx.Node, marks: Flags) -> Marks:
    source = _first(node)
    axis = position(argument(node, "dim"), len(shape_of(source)))
    start = position(argument(node, "index"), shape_of(source)[axis])
    return [(source, _placed(source, axis, start, np.expand_dims(marks, axis)))]


def _sliced(node: fx.Node, marks: Flags) -> Marks:
    source = _first(node)
    axis = position(argument(node, "dim"), len(shape_of(source)))
    given = slice(argument(node, "start"), argument(node, "end"), argument(node, "step"))
    start, _, step = given.indices(shape_of(source)[axis])
    return [(source, _placed(source, axis, start, marks, step))]


def _joined(node: fx.Node, marks: Flags) -> Marks:
    """Tensors one after the other."""
    parts: Any = node.args[0]
    axis = position(argument(node, "dim"), marks.ndim)
    ends = np.cumsum([shape_of(each)[axis] for each in parts])[:-1]
    return list(zip(parts, np.split(marks, ends, axis), strict=True))


def _stacked(node: fx.Node, marks: Flags) -> Marks:
    parts: Any = node.args[0]
    axis = position(argument(node, "dim"), marks.ndim)
    return [(each, np.asarray(marks.take(number, axis))) for number, each in enumerate(parts)]


def _narrowed(marks: Flags, shape: list[int]) -> Flags | None:
    """The marks of a tensor that was broadcast, if they are alike along the axes that were made."""
    lead = marks.ndim - len(shape)
    axes = (
        *range(lead),
        *(lead + axis for axis, size in enumerate(shape) if marks.shape[lead + axis] != size),
    )
    some = marks.any(axis=axes, keepdims=True)
    if (some != marks.all(axis=axes, keepdims=True)).any():
        return None
    return np.asarray(some.reshape(shape))


def _expanded(node: fx.Node, marks: Flags) -> Marks | None:
    found = _narrowed(marks, shape_of(_first(node)))
    return None if found is None else [(_first(node), found)]


def _sum(node: fx.Node, marks: Flags) -> Marks | None:
    """Both terms."""
    found: Marks = []
    for each in node.args[:2]:
        if not isinstance(each, fx.Node):
            return None
        own = _narrowed(marks, shape_of(each))
        if own is None:
            return None
        found.append((each, own))
    return found


def _product(node: fx.Node, marks: Flags) -> Marks | None:
    """One of the factors: the first that is a tensor with marks alike where it was broadcast."""
    for each in node.args[: 1 if op_name(node) == "div" else 2]:
        own = _narrowed(marks, shape_of(each)) if isinstance(each, fx.Node) else None
        if own is not None:
            return [(each, own)]  # type: ignore[list-item]
    return None


def _scores(node: fx.Node, marks: Flags) -> Marks | None:
    """The first of the tensors whose products are summed: the queries."""
    factors: Any = node.args[1] if op_name(node) == "einsum" else node.args
    return [(factors[0], np.ones(shape_of(factors[0]), dtype=bool))] if marks.all() else None


def _alike(marks: Flags, axis: int) -> Flags | None:
    """(size,) the marks along an axis, if they are alike along all others."""
    axes = tuple(each for each in range(marks.ndim) if each != position(axis, marks.ndim))
    some = marks.any(axis=axes)
    return None if (some != marks.all(axis=axes)).any() else np.asarray(some)


def _layer(node: fx.Node, marks: Flags, *, axis: int, rows: int) -> Marks | None:
    """Rows of the weight, at `rows` among its axes, and entries of the bias."""
    made = _alike(marks, axis)
    weight, bias = node.args[1], argument(node, "bias")
    if made is None or not isinstance(weight, fx.Node):
        return None
    return [(weight, _along(made, weight, rows)), *_of_bias(bias, made)]


def _along(made: Flags, weight: fx.Node, axis: int) -> Flags:
    shape = shape_of(weight)
    sides = [1] * len(shape)
    sides[axis] = -1
    return np.broadcast_to(made.reshape(sides), shape)


def _of_bias(bias: Any, made: Flags) -> Marks:
    return [(bias, np.broadcast_to(made, shape_of(bias)))] if isinstance(bias, fx.Node) else []


def _linear(node: fx.Node, marks: Flags) -> Marks | None:
    return _layer(node, marks, axis=-1, rows=0)


def _convolution(node: fx.Node, marks: Flags) -> Marks | None:
    weight: Any = node.args[1]
    return _layer(node, marks, axis=marks.ndim - len(shape_of(weight)) + 1, rows=0)


def _addmm(node: fx.Node, marks: Flags) -> Marks | None:
    """A bias and the columns of the second factor."""
    made, weight = _alike(marks, -1), node.args[2]
    if made is None or not isinstance(weight, fx.Node):
        return None
    return [(weight, _along(made, weight, 1)), *_of_bias(node.args[0], made)]


def _norm(node: fx.Node, marks: Flags) -> Marks | None:
    """The scale and the shift of a norm."""
    weight, bias = argument(node, "weight"), argument(node, "bias")
    if not isinstance(weight, fx.Node):
        return None
    own = _narrowed(marks, shape_of(weight))
    return None if own is None else [(weight, own), *_of_bias(bias, own)]


_COPIES = ("neg", "contiguous", "clone", "alias", "detach", "to", "_to_copy", "dropout", "float", "type_as")
_VIEWS = (
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten"),
    *("squeeze", "unsqueeze", "reshape_as", "view_as"),
)
_RULES: dict[str, Callable[[fx.Node, Flags], Marks | None]] = {
    **dict.fromkeys(_COPIES, _same),
    **dict.fromkeys(_VIEWS, _reshaped),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed),
    **dict.fromkeys(("layer_norm", "rms_norm"), _norm),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("mul", "div"), _product),
    **dict.fromkeys(("matmul", "bmm", "einsum"), _scores),
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("cat", "concat"), _joined),
    **dict.fromkeys(("expand", "broadcast_to"), _expanded),
    "t": _turned,
    "flip": _flipped,
    "permute": _permuted,
    "select": _selected,
    "slice": _sliced,
    "stack": _stacked,
    "linear": _linear,
    "addmm": _addmm,
}
