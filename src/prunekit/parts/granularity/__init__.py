"""Granularity: what goes together when weights are removed, and what of it there is in a model."""

from prunekit.parts.granularity.of_units import Kind, MaxoutPiece, Pieces, Unit, Units
from prunekit.parts.granularity.of_weights import INPUTS_FIRST, NM, Elements, Granularity, Weight, Weights

__all__ = [
    "INPUTS_FIRST",
    "NM",
    "Elements",
    "Granularity",
    "Kind",
    "MaxoutPiece",
    "Pieces",
    "Unit",
    "Units",
    "Weight",
    "Weights",
]
