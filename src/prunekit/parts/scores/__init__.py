"""Scores: one number per weight or unit; the lowest go first. One family per file."""

from prunekit.parts.context import Score, Scores
from prunekit.parts.scores.block_fisher import BlockFisher
from prunekit.parts.scores.filters import FeatureTaylor, GeometricMedian, NormScale
from prunekit.parts.scores.gradient_flow import GraSP, SynFlow
from prunekit.parts.scores.next_layer import N2PS, ThiNet
from prunekit.parts.scores.obs import OBD, OBS, LayerOBS
from prunekit.parts.scores.units import (
    Activation,
    MaxoutWins,
    Oracle,
    OutgoingNorm,
    Skeletonization,
    UnitScore,
    UnitTaylor,
)
from prunekit.parts.scores.weight_scores import (
    LAMP,
    RIA,
    Correlation,
    Gradient,
    InputDeviation,
    InputScore,
    Magnitude,
    Movement,
    Random,
    Wanda,
    WeightGradient,
)

__all__ = [
    "LAMP",
    "N2PS",
    "OBD",
    "OBS",
    "RIA",
    "Activation",
    "BlockFisher",
    "Correlation",
    "FeatureTaylor",
    "GeometricMedian",
    "GraSP",
    "Gradient",
    "InputDeviation",
    "InputScore",
    "LayerOBS",
    "Magnitude",
    "MaxoutWins",
    "Movement",
    "NormScale",
    "Oracle",
    "OutgoingNorm",
    "Random",
    "Score",
    "Scores",
    "Skeletonization",
    "SynFlow",
    "ThiNet",
    "UnitScore",
    "UnitTaylor",
    "Wanda",
    "WeightGradient",
]
