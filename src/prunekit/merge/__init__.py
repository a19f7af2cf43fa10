"""Fewer layers that compute the same, or nearly: batch norms folded, and layers merged into convolutions."""

from prunekit.merge.batch_norm import Fold, FoldResult, fold_batch_norms

__all__ = ["Fold", "FoldResult", "fold_batch_norms"]
