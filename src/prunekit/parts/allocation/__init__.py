"""Allocation: how the amount to remove is shared out over the layers."""

from prunekit.parts.allocation.measured import GRID, Budget, Sensitivity, without_lowest
from prunekit.parts.allocation.rules import (
    ERK,
    OWL,
    BelowMean,
    Global,
    Manual,
    NoPruning,
    PerLayer,
    Recorded,
    SummaryAllocation,
    Threshold,
    Zeros,
)
from prunekit.parts.context import Allocation

__all__ = [
    "ERK",
    "GRID",
    "OWL",
    "Allocation",
    "BelowMean",
    "Budget",
    "Global",
    "Manual",
    "NoPruning",
    "PerLayer",
    "Recorded",
    "Sensitivity",
    "SummaryAllocation",
    "Threshold",
    "Zeros",
    "without_lowest",
]
