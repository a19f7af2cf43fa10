"""Scores of the pieces of maxout units."""

from __future__ import annotations

from prunekit.parts.context import StepContext
from prunekit.parts.scores.base import Score, Scores
from prunekit.statistics import MaxoutMaxima


class MaxoutWins(Score):
    """How often the piece is its unit's maximum: the least used goes first."""

    name = "maxout_wins"
    paper = "Rueda, Grzeszick, Fink 2017, arXiv 1707.06838"
    works_on = ("pieces",)
    needs = (MaxoutMaxima(),)

    def __call__(self, context: StepContext) -> Scores:
        """The counts, (units, pieces) each."""
        return dict(context.statistics[MaxoutMaxima()])
