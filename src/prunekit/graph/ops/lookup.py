"""Embeddings and indexing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit.graph.labels import Dim, Value, position
from prunekit.graph.ops.registry import operators
from prunekit.graph.propagator import Propagator


def embedding(propagator: Propagator, weight: Value, index: Value, *_: Any, **__: Any) -> Value:
    """weight (entries, width), one row for each index."""
    propagator.freeze([weight[0]], "is looked up by the input")
    propagator.freeze(index, "is looked up with")
    if weight[1].origin is not None:
        propagator.hint("embedding", weight[1].labels)
    return (*(Dim(dim.size) for dim in index), weight[1]._replace(origin=None))


def index(propagator: Propagator, x: Value, indices: Sequence[Value | None]) -> Any:
    """Entries of some axes picked by tensors; the axes that are not picked stay."""
    given = [axis for axis, each in enumerate(indices) if each is not None]
    if not given or given != list(range(given[0], given[-1] + 1)):
        return propagator.unknown("is indexed")
    propagator.freeze([x[axis] for axis in given], "is indexed by a tensor")
    for axis in given:
        propagator.freeze(indices[axis] or (), "is an index")
    shape = [int(size) for size in propagator.val.shape]
    behind = len(x) - given[-1] - 1
    middle = shape[given[0] : len(shape) - behind]
    rest = [dim._replace(origin=None) for dim in x]
    return (*rest[: given[0]], *(Dim(size) for size in middle), *rest[len(x) - behind :])


def index_select(propagator: Propagator, x: Value, dim: int, index: Value) -> Value:
    """Entries of one axis picked by a tensor."""
    axis = position(dim, len(x))
    propagator.freeze([x[axis], *index], "is indexed by a tensor")
    return (*x[:axis], Dim(index[0].size if index else 1), *x[axis + 1 :])


def sizes_of_embedding(module: nn.Module, name: str, shape: tuple[int, ...], groups: int) -> dict[str, Any]:
    """The extent of `nn.Embedding`, whose weight is (entries, width)."""
    if isinstance(module, nn.Embedding) and name == "weight":
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    return {}


def check_indices(arguments: Mapping[str, Any]) -> None:
    """Refuse masks: how many entries they pick depends on their values."""
    for index in arguments["indices"]:
        if index is not None and index.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"an index is of {index.dtype}, whose result's shape depends on values")


operators("embedding", labels=embedding, module_sizes=sizes_of_embedding, saved="default")
operators("index", labels=index, saved="Tensor", check=check_indices)
operators("index_select", labels=index_select, saved="default")
operators("gather index_add index_copy masked_scatter scatter_add take take_along_dim", saved="default")
operators("index_fill", saved="int_Scalar int_Tensor")
operators("index_put", saved="default", check=check_indices)
operators("scatter", saved="reduce src value value_reduce")
operators("scatter_reduce", saved="two")
