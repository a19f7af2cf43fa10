"""Embeddings and indexing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunekit.graph.ops.registry import rule
from prunekit.graph.values import Dim, Value, position
from prunekit.graph.walker import Walker


@rule("embedding")
def embedding(walker: Walker, weight: Value, index: Value, *_: Any, **__: Any) -> Value:
    """weight (entries, width), one row for each index."""
    walker.freeze([weight[0]], "is looked up by the input")
    walker.freeze(index, "is looked up with")
    if weight[1].origin is not None:
        walker.hint("embedding", weight[1].labels)
    return (*(Dim(dim.size) for dim in index), weight[1]._replace(origin=None))


@rule("index")
def index(walker: Walker, x: Value, indices: Sequence[Value | None]) -> Any:
    """Entries of some axes picked by tensors; the axes that are not picked stay."""
    given = [axis for axis, each in enumerate(indices) if each is not None]
    if not given or given != list(range(given[0], given[-1] + 1)):
        return walker.unknown("is indexed")
    walker.freeze([x[axis] for axis in given], "is indexed by a tensor")
    for axis in given:
        walker.freeze(indices[axis] or (), "is an index")
    shape = [int(size) for size in walker.val.shape]
    behind = len(x) - given[-1] - 1
    middle = shape[given[0] : len(shape) - behind]
    rest = [dim._replace(origin=None) for dim in x]
    return (*rest[: given[0]], *(Dim(size) for size in middle), *rest[len(x) - behind :])


@rule("index_select")
def index_select(walker: Walker, x: Value, dim: int, index: Value) -> Value:
    """Entries of one axis picked by a tensor."""
    axis = position(dim, len(x))
    walker.freeze([x[axis], *index], "is indexed by a tensor")
    return (*x[:axis], Dim(index[0].size if index else 1), *x[axis + 1 :])
