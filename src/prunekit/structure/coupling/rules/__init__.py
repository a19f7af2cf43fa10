"""What each operator does to the labels; those that compute have rules by hand."""

from prunekit.structure.coupling.rules import (
    contract,
    convolve,
    lookup,
    moves,
    norms,
    pads,
    pointwise,
    reduce,
    spatial,
)
from prunekit.structure.coupling.rules.registry import RULES

__all__ = [
    "RULES",
    "contract",
    "convolve",
    "lookup",
    "moves",
    "norms",
    "pads",
    "pointwise",
    "reduce",
    "spatial",
]
