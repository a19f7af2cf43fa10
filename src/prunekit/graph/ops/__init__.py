"""What each operator does to the labels; those that compute have rules by hand."""

from prunekit.graph.ops import (
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
from prunekit.graph.ops.registry import RULES

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
