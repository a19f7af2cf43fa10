"""Labels through a change of shape: which old axes make up which new ones, and cutting an axis up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunekit.graph.labels import Dim, Ints, Value
from prunekit.graph.propagator import Propagator


def matched(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes that hold the same entries; axes of size 1 are left out.

    (2, 6, 5) seen as (2, 3, 2, 5) gives ([0], [0]), ([1], [1, 2]), ([2], [3]).
    """
    before = [axis for axis, size in enumerate(old) if size != 1]
    after = [axis for axis, size in enumerate(new) if size != 1]
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [before[i]], [after[j]]
        a, b = old[before[i]], new[after[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                left.append(before[i])
                a *= old[before[i]]
                i += 1
            else:
                right.append(after[j])
                b *= new[after[j]]
                j += 1
        runs.append((left, right))
    return runs


def reshaped(propagator: Propagator, value: Value, shape: Sequence[int]) -> Value:
    """The labels of a tensor seen in another shape with the same order of entries."""
    if any(dim.size == 0 for dim in value):
        return tuple(Dim(size) for size in shape)
    result = [Dim(size) for size in shape]
    for run, (left, right) in enumerate(matched([dim.size for dim in value], shape)):
        if len(left) == 1 and len(right) == 1:
            result[right[0]] = value[left[0]]
            continue
        flat = merged(propagator, [value[axis] for axis in left], tag=(run, f"merged from {len(left)}"))
        cut = split(propagator, flat, [shape[axis] for axis in right], tag=(run, f"cut into {len(right)}"))
        for axis, dim in zip(right, cut, strict=True):
            result[axis] = dim
    return tuple(result)


def merged(propagator: Propagator, dims: Sequence[Dim], *, tag: object) -> Dim:
    """Axes laid out as one; where several could change, one of them is taken and the others stay whole."""
    size = int(np.prod([dim.size for dim in dims]))
    alive = [axis for axis, dim in enumerate(dims) if dim.labels is not None]
    if not alive:
        return Dim(size)
    axis = alive[0]
    if len(alive) > 1:
        found = propagator.choose(tag, propagator.sorted(alive, [dim.size for dim in dims]))
        axis = alive[0] if found is None else found
        propagator.freeze([dims[other] for other in alive if other != axis], "is merged with another axis")
    labels = dims[axis].labels
    assert labels is not None
    if len(alive) > 1:
        propagator.chosen(tag, axis, labels)
    shape = [1] * len(dims)
    shape[axis] = dims[axis].size
    flat = np.broadcast_to(labels.reshape(shape), [dim.size for dim in dims]).reshape(-1)
    return Dim(size, flat, dims[axis].zero)


def split(propagator: Propagator, dim: Dim, sizes: Sequence[int], *, tag: object) -> list[Dim]:
    """An axis cut into several, of which one can change: its entries go as whole rows or whole columns.

    Args:
        propagator: the state of the propagation.
        dim: the axis.
        sizes: of the axes it becomes.
        tag: tells this cut from others at the same node.
    """
    if len(sizes) == 1:
        return [dim]
    result = [Dim(size) for size in sizes]
    if dim.labels is None:
        return result
    grid = dim.labels.reshape(sizes)
    possible = [axis for axis in range(len(sizes)) if _distinct(grid, axis) > 1]
    axis = propagator.choose(tag, propagator.sorted(possible, sizes))
    if axis is None:
        propagator.freeze([dim], f"is cut into {tuple(sizes)}, of which nothing can be taken out,")
        return result
    labels = rows_joined(propagator, np.moveaxis(grid, axis, 0).reshape(sizes[axis], -1))
    if len(possible) > 1:
        propagator.chosen(tag, axis, labels)
    result[axis] = Dim(sizes[axis], labels, dim.zero)
    return result


def rows_joined(propagator: Propagator, rows: Ints) -> Ints:
    """(rows, entries) labels where each row goes as one: one label for each row."""
    first = np.where((rows == 0).any(axis=1), 0, rows[:, 0])
    if rows.shape[1] > 1:
        why = f"goes with an entry that cannot change at {propagator.where}"
        propagator.labels.join(rows, first[:, None], why)
    return first


def _distinct(grid: Ints, axis: int) -> int:
    rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    return int(np.unique(rows.min(axis=1)).size)
