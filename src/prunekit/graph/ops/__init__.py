"""What is known of each operator: one record for each, in files by kind."""

from prunekit.graph.ops import (
    indexing,
    moves,
    pointwise,
    products,
    recurrent,
    reductions,
    spatial,
)
from prunekit.graph.ops.registry import OPERATORS, Operator, operator_of

__all__ = [
    "OPERATORS",
    "Operator",
    "indexing",
    "moves",
    "operator_of",
    "pointwise",
    "products",
    "recurrent",
    "reductions",
    "spatial",
]
