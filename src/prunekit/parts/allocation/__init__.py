"""Allocation: how the amount to remove is shared out over the layers."""

from prunekit.parts.allocation.base import Allocation
from prunekit.parts.allocation.budget import Budget, Figure
from prunekit.parts.allocation.by_scores import OWL, BelowMean, Global
from prunekit.parts.allocation.density import ERK, Given, Nothing, PerLayer, Threshold
from prunekit.parts.allocation.sensitivity import Sensitivity

__all__ = [
    "ERK",
    "OWL",
    "Allocation",
    "BelowMean",
    "Budget",
    "Figure",
    "Given",
    "Global",
    "Nothing",
    "PerLayer",
    "Sensitivity",
    "Threshold",
]
