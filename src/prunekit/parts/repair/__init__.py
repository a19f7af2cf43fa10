"""Repair: what is done to the survivors at once, with no gradient step."""

from prunekit.parts.repair.unit_repairs import ChannelScale, FoldMean, LeastSquares, SietsmaDow, UnitRepair
from prunekit.parts.repair.weight_repairs import (
    MaskedLeastSquares,
    NoRepair,
    OBSRefit,
    OBSUpdate,
    Repair,
    SparseGPTUpdate,
    WeightRepair,
)

__all__ = [
    "ChannelScale",
    "FoldMean",
    "LeastSquares",
    "MaskedLeastSquares",
    "NoRepair",
    "OBSRefit",
    "OBSUpdate",
    "Repair",
    "SietsmaDow",
    "SparseGPTUpdate",
    "UnitRepair",
    "WeightRepair",
]
