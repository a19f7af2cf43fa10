"""Pruned networks run: layers whose zeros are not multiplied with, where that is faster."""

from prunekit.runtime.sparse_layers import SparseConv2d, SparseLinear
from prunekit.runtime.sparsify import LayerTimes, SparsifyResult, sparsify_for_cpu

__all__ = ["LayerTimes", "SparseConv2d", "SparseLinear", "SparsifyResult", "sparsify_for_cpu"]
