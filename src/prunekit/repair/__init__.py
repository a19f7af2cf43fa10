"""Repair: what is done to the survivors at once, with no gradient step."""

from prunekit.repair.base import Damage, NoRepair, Repair
from prunekit.repair.channel_scale import ChannelScale
from prunekit.repair.fold_mean import FoldMean
from prunekit.repair.least_squares import LeastSquares
from prunekit.repair.obs import OBSRefit
from prunekit.repair.sietsma_dow import SietsmaDow
from prunekit.repair.units import UnitRepair
from prunekit.repair.weights import MaskedLeastSquares, OBSUpdate, SparseGPTUpdate, WeightRepair

__all__ = [
    "ChannelScale",
    "Damage",
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
