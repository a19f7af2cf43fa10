"""What is known of each operator: one record for each, in files by kind."""

from prunekit.graph.ops import (
    contraction,
    convolution,
    creation,
    moves,
    norms,
    pointwise,
    reductions,
    spatial,
)
from prunekit.graph.ops.registry import OPERATORS, Operator, operator_of

__all__ = [
    "OPERATORS",
    "Operator",
    "contraction",
    "convolution",
    "creation",
    "moves",
    "norms",
    "operator_of",
    "pointwise",
    "reductions",
    "spatial",
]
