"""The method for networks of maxout units."""

from __future__ import annotations

from prunekit.limits import WHOLE, whole
from prunekit.methods._settings import method
from prunekit.methods._training import TrainingLike, training_of
from prunekit.parts.allocation import PerLayer
from prunekit.parts.granularity import MaxoutPiece
from prunekit.parts.retrain import FineTune
from prunekit.parts.schedule import Linear
from prunekit.parts.scores import MaxoutWins
from prunekit.recipe import Recipe


@method
def maxout_pruning(
    pieces: int = 4, left: int = 1, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The least used piece of every maxout unit, one in each round, with retraining, until `left` are left.

    Paper: Rueda, Grzeszick, Fink 2017, arXiv 1707.06838
    """
    pieces = whole("pieces", pieces, 2, WHOLE)
    rounds = pieces - whole("left", left, 1, pieces - 1)
    return Recipe(
        score=MaxoutWins(),
        shape=MaxoutPiece(),
        allocation=PerLayer(),
        schedule=Linear(sparsity=rounds / pieces, steps=rounds),
        retrain=FineTune(training=training_of(epochs, training)),
        calibration=60_000,
    )
