"""Pruned networks run: layers whose zeros are not multiplied with, where that is faster."""

from prunekit.runtime.sparse_layers import SparseConv2d, SparseLinear

__all__ = ["SparseConv2d", "SparseLinear"]
