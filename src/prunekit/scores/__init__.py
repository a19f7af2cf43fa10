"""Scores: one number per weight; the lowest go first. One family per file."""

from prunekit.scores.base import Evidence, Score, Scores
from prunekit.scores.gradients import Gradient, WeightGradient
from prunekit.scores.weights import Magnitude, Random

__all__ = ["Evidence", "Gradient", "Magnitude", "Random", "Score", "Scores", "WeightGradient"]
