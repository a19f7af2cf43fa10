"""Allocation: how the amount to remove is shared out over the layers."""

from prunekit.allocation.base import Allocation, Remains, Situation
from prunekit.allocation.budget import Budget, Figure
from prunekit.allocation.density import ERK, Given, Nothing, PerLayer, Threshold
from prunekit.allocation.mean import BelowMean
from prunekit.allocation.owl import OWL
from prunekit.allocation.ranked import Global
from prunekit.allocation.sensitivity import Sensitivity

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
    "Remains",
    "Sensitivity",
    "Situation",
    "Threshold",
]
