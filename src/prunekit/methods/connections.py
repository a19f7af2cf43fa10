"""Methods that look at how the activations at the two ends of a connection go together."""

from __future__ import annotations

from prunekit.methods._settings import method
from prunekit.methods._training import TrainingLike, training_of
from prunekit.parts.allocation import PerLayer
from prunekit.parts.retrain import FineTune
from prunekit.parts.schedule import OneShot
from prunekit.parts.scores import Correlation
from prunekit.parts.selection import CorrelatedHalves
from prunekit.recipe import Recipe


@method
def correlation(
    sparsity: float = 0.9, strong: float = 0.75, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """Mostly strongly correlated connections, drawn at random; one layer at a time from the top, fine-tuned.

    With `strong` 1 the stronger halves alone are drawn from.

    Paper: Sun, Wang, Tang 2016, CVPR, arXiv 1512.01891
    """
    return Recipe(
        score=Correlation(),
        selection=CorrelatedHalves(strong=strong),
        allocation=PerLayer(),
        order="backward",
        schedule=OneShot(sparsity=sparsity),
        retrain=FineTune(training=training_of(epochs, training)),
    )
