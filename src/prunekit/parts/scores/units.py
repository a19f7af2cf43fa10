"""Scores that rank whole units: neurons, filters and pieces of maxout units."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from prunekit.errors import InputError
from prunekit.graph.members import group_outgoing_norms
from prunekit.limits import WHOLE
from prunekit.parts.base import Level
from prunekit.parts.context import Score, Scores, StepContext
from prunekit.statistics import (
    ActivationStats,
    MaxoutMaxima,
    OracleChange,
    Relevance,
    Statistic,
    TaylorChange,
)
from prunekit.statistics.unit_statistics import Error
from prunekit.units.gains import NO_RECURSION


class UnitScore(Score):
    """A score with one number per unit, of a chain or of coupled groups."""

    works_on: ClassVar[tuple[Level, ...]] = ("units",)

    @property
    def statistic(self) -> Statistic:
        """What is measured; the score is its value."""
        raise NotImplementedError

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The one statistic."""
        return (self.statistic,)

    def __call__(self, context: StepContext) -> Scores:
        """The statistic's values; units that are off, which have none, count as zero."""
        return {name: value.nan_to_num(0.0) for name, value in context.statistics[self.statistic].items()}


class Oracle(UnitScore):
    """The exact change of the error when the unit is switched off; the lowest signed change goes first."""

    name = "oracle"
    paper = "Wolfe, Sharma, Raj 2017, arXiv 1701.04465"
    error: Error = "squared_error"

    @property
    def statistic(self) -> Statistic:
        """E(off) - E(now)."""
        return OracleChange(self.error)


class UnitTaylor(UnitScore):
    """The change that a Taylor series in the unit's gain predicts for switching it off.

    Attributes:
        order: 1, or 2 with half of the second derivative.
        form: of the second derivative: exact, or as published, with the diagonal terms only.
    """

    name = "unit_taylor"
    paper = "Wolfe, Sharma, Raj 2017, arXiv 1701.04465"
    order: Literal[1, 2] = 2
    form: Literal["exact", "published"] = "exact"
    error: Error = "squared_error"

    def check(self, context: StepContext) -> None:
        """The published form is for chains.

        Raises:
            InputError: for it on another network, with the reason.
        """
        is_path = context.coupled is not None and context.coupled.chain is not None
        if self.order == 2 and self.form == "published" and not is_path:
            raise InputError(NO_RECURSION)

    @property
    def statistic(self) -> Statistic:
        """The predicted E(off) - E(now)."""
        return TaylorChange(self.error, self.order, self.form == "published")


class Skeletonization(UnitScore):
    """Relevance: -dE/dgain of the linear error sum |t - o|, as a running average over batches."""

    name = "skeletonization"
    paper = "Mozer, Smolensky 1989, NIPS 1"
    batch_size: int = Field(default=100, ge=1, le=WHOLE)

    @property
    def statistic(self) -> Statistic:
        """The running average."""
        return Relevance(self.batch_size)


class Activation(UnitScore):
    """How the unit's output behaves on data: units that are silent, constant or replaceable go first.

    Attributes:
        what: `nonzeros` is 1 - APoZ, the share of outputs behind the activation that are not zero; `mean`
            the mean output; `variance` its variance; `irreplaceable` 1 - max r^2 over the other units of the
            layer, the part of its variance that the best stand-in misses.
    """

    name = "activation"
    paper = "Hu et al. 2016 (APoZ), arXiv 1607.03250; correlation: Sietsma, Dow 1988"
    what: Literal["nonzeros", "mean", "variance", "irreplaceable"] = "nonzeros"

    @property
    def statistic(self) -> Statistic:
        """The behaviour."""
        return ActivationStats("zeros" if self.what == "nonzeros" else self.what)

    def __call__(self, context: StepContext) -> Scores:
        """The value, as a score: higher = keep."""
        found = super().__call__(context)
        return {name: 1 - zeros for name, zeros in found.items()} if self.what == "nonzeros" else found


class OutgoingNorm(Score):
    """The L1 or L2 norm of the weights that read the unit; for incoming weights use `magnitude`."""

    name = "outgoing_norm"
    works_on = ("units",)
    order: Literal[1, 2] = 1

    def __call__(self, context: StepContext) -> Scores:
        """One norm per unit."""
        assert context.coupled is not None
        return {name: group_outgoing_norms(context.coupled, name, self.order) for name in context.kept}


class MaxoutWins(Score):
    """How often the piece is its unit's maximum: the least used goes first."""

    name = "maxout_wins"
    paper = "Rueda, Grzeszick, Fink 2017, arXiv 1707.06838"
    works_on = ("pieces",)
    needs = (MaxoutMaxima(),)

    def __call__(self, context: StepContext) -> Scores:
        """The counts, (units, pieces) each."""
        return dict(context.statistics[MaxoutMaxima()])
