"""Repair: what is done to the survivors at once, with no gradient step."""

from prunekit.parts.repair.channel_scale import ChannelScale
from prunekit.parts.repair.fold_mean import FoldMean
from prunekit.parts.repair.least_squares import LeastSquares
from prunekit.parts.repair.sietsma_dow import SietsmaDow
from prunekit.parts.repair.units import UnitRepair
from prunekit.parts.repair.weights import (
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
