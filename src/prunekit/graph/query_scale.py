"""Which parameters to multiply so that the value of a node is multiplied: back from it to the layers behind.

Scores of attention are products of queries and keys, so that a factor of the scores can be taken by the layer
that makes the one or the other: through views, splits, rotations and the scale of a norm.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import fx

from prunekit.graph.captured_graph import argument, op_name, shape_of
from prunekit.graph.labels import Flags, position

Marks = list[tuple[fx.Node, Flags]]
"""Nodes with the entries of their values that are to be multiplied."""


def scaled_back(reader: fx.Node, nodes: Sequence[fx.Node]) -> list[dict[fx.Node, Flags]]:
    """The placeholders, and which entries of them are to be multiplied, so that all of a node's value is.

    Args:
        reader: a node of a recorded graph.
        nodes: those that it reads of which any one may be multiplied.

    Returns:
        The ways there are, of which one is enough: by the queries, and by the keys. Those come first that
        multiply nothing that others read, too.
    """
    ways = [way for node in nodes for side in (0, 1) if (way := _way(reader, node, side)) is not None]
    return [found for found, _ in sorted(ways, key=lambda way: way[1])]


def _way(reader: fx.Node, node: fx.Node, side: int) -> tuple[dict[fx.Node, Flags], bool] | None:
    """The entries of placeholders by one side of the products, and whether something else is multiplied.

    None where the way back meets something that a factor does not go through.
    """
    found: dict[fx.Node, Flags] = {}
    seen = {node}
    waiting: Marks = [(node, np.ones(shape_of(node), dtype=bool))]
    while waiting:
        each, marks = waiting.pop()
        if not marks.any():
            continue
        seen.add(each)
        if each.op == "placeholder":
            found[each] = found.get(each, np.zeros(marks.shape, dtype=bool)) | marks
            continue
        if op_name(each) in _SCORES:
            # scores that nothing reads, as of padding, may be multiplied, too
            waiting.append(_scores(each, side))
            continue
        rule = _item if each.target is operator.getitem else _RULES.get(op_name(each))
        before = None if rule is None else rule(each, marks)
        if before is None:
            return None
        waiting.extend(before)
    others = {user for each in seen for user in each.users} - seen - {reader}
    return found, any(op_name(user) not in _PARTS for user in others)


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
    if op_name(whole) not in _SPLITS:
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
    """Tensors one after the other; PyTorch passes over those of shape (0,), whatever the others' axes are."""
    given: Any = node.args[0]
    parts = [each for each in given if list(shape_of(each)) != [0] or marks.ndim == 1]
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


def _scores(node: fx.Node, side: int) -> tuple[fx.Node, Flags]:
    """One of the tensors whose products are summed."""
    factors: Any = node.args[1] if op_name(node) == "einsum" else node.args
    return factors[side], np.ones(shape_of(factors[side]), dtype=bool)


def _picked(node: fx.Node, marks: Flags) -> Marks:
    """Entries that an index names: all that there are, of which some may be read nowhere."""
    return [(_first(node), np.ones(shape_of(_first(node)), dtype=bool))]


def _zeros(node: fx.Node, marks: Flags) -> Marks:
    """What a factor does not change."""
    return []


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
_SCORES = frozenset({"matmul", "bmm", "einsum"})
_SPLITS = frozenset({"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk"})
_PARTS = _SPLITS | {"unbind", "select", "slice", "getitem", "<built-in function getitem>"}
"""What reads a part of a value only."""
_RULES: dict[str, Callable[[fx.Node, Flags], Marks | None]] = {
    **dict.fromkeys(_COPIES, _same),
    **dict.fromkeys(_VIEWS, _reshaped),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed),
    **dict.fromkeys(("layer_norm", "rms_norm"), _norm),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("mul", "div"), _product),
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("cat", "concat"), _joined),
    **dict.fromkeys(("expand", "broadcast_to"), _expanded),
    **dict.fromkeys(("gather", "index_select", "repeat"), _picked),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _zeros),
    "t": _turned,
    "flip": _flipped,
    "permute": _permuted,
    "select": _selected,
    "slice": _sliced,
    "stack": _stacked,
    "linear": _linear,
    "addmm": _addmm,
}
