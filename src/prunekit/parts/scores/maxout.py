"""Scores of the pieces of maxout units."""

from __future__ import annotations

from typing import ClassVar

from prunekit.parts.scores.base import Evidence, Level, Score, Scores
from prunekit.statistics import MaxoutMaxima, Statistic


class MaxoutWins(Score):
    """How often the piece is its unit's maximum: the least used goes first."""

    name: ClassVar[str] = "maxout_wins"
    paper: ClassVar[str] = "Rueda, Grzeszick, Fink 2017, arXiv 1707.06838"
    level: ClassVar[Level] = "piece"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The counts."""
        return (MaxoutMaxima(),)

    def __call__(self, evidence: Evidence) -> Scores:
        """The counts, (units, pieces) each."""
        return dict(evidence.found[MaxoutMaxima()])
