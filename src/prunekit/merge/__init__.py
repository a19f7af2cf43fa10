"""Fewer layers that compute the same, or nearly: batch norms folded, and layers merged into convolutions."""

from prunekit.merge.batch_norm import Fold, FoldResult, fold_batch_norms, restore_batch_norms
from prunekit.merge.fit import fit_convolution
from prunekit.merge.merging import MergedBlock, MergeResult, MergeSizes, merge_layers

__all__ = [
    "Fold",
    "FoldResult",
    "MergeResult",
    "MergeSizes",
    "MergedBlock",
    "fit_convolution",
    "fold_batch_norms",
    "merge_layers",
    "restore_batch_norms",
]
