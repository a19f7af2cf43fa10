"""Scores: one number per weight or unit; the lowest go first. One family per file."""

from prunekit.parts.scores.base import Score, Scores
from prunekit.parts.scores.correlation import Correlation
from prunekit.parts.scores.filters import FeatureTaylor, GeometricMedian, NormScale, ThiNet
from prunekit.parts.scores.gradients import Gradient, WeightGradient
from prunekit.parts.scores.inputs import InputDeviation, InputScore, Wanda
from prunekit.parts.scores.layer_obs import LayerOBS
from prunekit.parts.scores.maxout import MaxoutWins
from prunekit.parts.scores.movement import Movement
from prunekit.parts.scores.obs import OBD, OBS
from prunekit.parts.scores.units import (
    N2PS,
    Activation,
    Oracle,
    OutgoingNorm,
    Skeletonization,
    UnitScore,
    UnitTaylor,
)
from prunekit.parts.scores.weights import Magnitude, Random

__all__ = [
    "N2PS",
    "OBD",
    "OBS",
    "Activation",
    "Correlation",
    "FeatureTaylor",
    "GeometricMedian",
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
    "ThiNet",
    "UnitScore",
    "UnitTaylor",
    "Wanda",
    "WeightGradient",
]
