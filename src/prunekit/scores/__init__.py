"""Scores: one number per weight or unit; the lowest go first. One family per file."""

from prunekit.scores.base import Evidence, Score, Scores
from prunekit.scores.correlation import Correlation
from prunekit.scores.filters import FeatureTaylor, GeometricMedian, NormScale, ThiNet
from prunekit.scores.gradients import Gradient, WeightGradient
from prunekit.scores.inputs import InputDeviation, InputScore, Wanda
from prunekit.scores.layer_obs import LayerOBS
from prunekit.scores.maxout import MaxoutWins
from prunekit.scores.obs import OBD, OBS
from prunekit.scores.units import (
    N2PS,
    Activation,
    Oracle,
    OutgoingNorm,
    Skeletonization,
    UnitScore,
    UnitTaylor,
)
from prunekit.scores.weights import Magnitude, Random

__all__ = [
    "N2PS",
    "OBD",
    "OBS",
    "Activation",
    "Correlation",
    "Evidence",
    "FeatureTaylor",
    "GeometricMedian",
    "Gradient",
    "InputDeviation",
    "InputScore",
    "LayerOBS",
    "Magnitude",
    "MaxoutWins",
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
