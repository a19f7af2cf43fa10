"""Quantisation: few values for the weights that are left, chosen once at the end and trained."""

from prunekit.parts.quantize.base import Counted, FewValues, LayerQuantizer, NoQuantization, Quantizer
from prunekit.parts.quantize.bit_allocation import BitAllocation
from prunekit.parts.quantize.cerwu import RateAwareGrid
from prunekit.parts.quantize.entropy import EntropyTraining
from prunekit.parts.quantize.kmeans import KMeans
from prunekit.parts.quantize.shared_values import SharedValues
from prunekit.parts.quantize.symbol_costs import SymbolCosts

__all__ = [
    "BitAllocation",
    "Counted",
    "EntropyTraining",
    "FewValues",
    "KMeans",
    "LayerQuantizer",
    "NoQuantization",
    "Quantizer",
    "RateAwareGrid",
    "SharedValues",
    "SymbolCosts",
]
