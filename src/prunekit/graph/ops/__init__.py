"""What is known of each operator: one record for each, in files by kind."""

from prunekit.graph.ops import (
    contraction,
    convolution,
    creation,
    lookup,
    moves,
    norms,
    pads,
    pointwise,
    recurrent,
    reductions,
    spatial,
)
from prunekit.graph.ops.registry import OPERATORS, Operator, op_name, operator_of

__all__ = [
    "OPERATORS",
    "Operator",
    "contraction",
    "convolution",
    "creation",
    "lookup",
    "moves",
    "norms",
    "op_name",
    "operator_of",
    "pads",
    "pointwise",
    "recurrent",
    "reductions",
    "spatial",
]
