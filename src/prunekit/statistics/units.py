"""What is measured of units: their true cost, estimates of it, and how they behave."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunekit import units
from prunekit.batches import Batch
from prunekit.errors import InputError
from prunekit.statistics.collect import Collector, Statistic, Subject
from prunekit.statistics.coupled import CountMacs, WatchBehaviour, WatchChange, What
from prunekit.statistics.processes import sum_over_processes
from prunekit.structure import Chain
from prunekit.units.judge import error_of

Values = dict[str, Tensor]
"""By group of units, (units,) float64; NaN for units that are off already."""

Error = Literal["squared_error", "cross_entropy", "absolute_error"]


class UnitStatistic(Statistic):
    """Measured by `prunekit.units` on all examples at once; its functions bound their memory themselves."""

    @property
    def needs_loss(self) -> bool:
        """The functions run what they need of the network by themselves."""
        return False

    def start(self, subject: Subject) -> Collector:
        """A collector that keeps the examples.

        Raises:
            InputError: if the recipe's shape counts weights, not units.
        """
        if subject.coupled is not None:
            return self.watch(subject)
        if subject.chain is None:
            raise InputError("this score ranks units: give the recipe the shape 'unit'")
        return _Examples(self, subject.chain, subject.kept)

    def watch(self, subject: Subject) -> Collector:
        """The collector for coupled groups.

        Raises:
            InputError: if it is only known for chains.
        """
        raise InputError("this score follows units along a chain of layers: give the recipe the shape 'unit'")

    @abstractmethod
    def of(self, chain: Chain, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """The value of every unit, a mean over the examples."""


class _Examples(Collector):
    def __init__(self, statistic: UnitStatistic, chain: Chain, kept: Mapping[str, Tensor]) -> None:
        self._statistic = statistic
        self._chain = chain
        self._kept = kept
        self._batches: list[Batch] = []

    def batch(self, batch: Batch, loss: Tensor) -> None:
        self._batches.append(batch)

    def finish(self) -> Values:
        inputs = torch.cat([inputs for inputs, _ in self._batches])
        targets = torch.cat([targets for _, targets in self._batches])
        values = self._statistic.of(self._chain, inputs, targets, self._kept)
        examples = torch.tensor(float(len(inputs)), dtype=torch.float64, device=inputs.device)
        sums = {name: value * examples for name, value in values.items()}
        sum_over_processes([*sums.values(), examples])
        return {name: total / examples for name, total in sums.items()}


@dataclass(frozen=True)
class SwitchingOff(UnitStatistic):
    """The exact change of the error when a unit is switched off: the oracle."""

    error: Error

    def of(self, chain: Chain, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """E(off) - E(now)."""
        return units.oracle_changes(chain, inputs, targets, self.error, kept=kept)


@dataclass(frozen=True)
class PredictedChange(UnitStatistic):
    """The change that a Taylor series in the unit's gain predicts, of first or second order."""

    error: Error
    order: int
    published: bool

    def of(self, chain: Chain, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """-dE/dgain, plus half of d2E/dgain2: exact, or by the published diagonal recursion."""
        if self.order == 1:
            found = units.gain_derivatives(chain, inputs, targets, self.error, second=False, kept=kept)
            return {name: derivatives.first_order for name, derivatives in found.items()}
        if self.published:
            found = units.diagonal_recursion(chain, inputs, targets, self.error, kept=kept)
        else:
            found = units.gain_derivatives(chain, inputs, targets, self.error, kept=kept)
        return {name: derivatives.second_order for name, derivatives in found.items()}


@dataclass(frozen=True)
class Relevance(UnitStatistic):
    """-dE/dgain of the linear error, as a running average over batches (skeletonization)."""

    batch_size: int

    def of(self, chain: Chain, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """The average after the last batch."""
        starts = range(0, len(inputs), self.batch_size)
        batches = ((inputs[k : k + self.batch_size], targets[k : k + self.batch_size]) for k in starts)
        return units.relevance(chain, batches, kept=kept)


@dataclass(frozen=True)
class Behaviour(UnitStatistic):
    """How a unit's output behaves: mean, variance, share of zeros, or how little others can replace it."""

    what: What

    def watch(self, subject: Subject) -> Collector:
        """At the places where the units appear."""
        return WatchBehaviour(subject, self.what)

    def of(self, chain: Chain, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """One figure per unit, see `prunekit.units.Activity`."""
        found = units.activity(chain, inputs, pairs=self.what == "irreplaceable", kept=kept)
        return {name: getattr(activity, self.what) for name, activity in found.items()}


@dataclass(frozen=True)
class Significance(UnitStatistic):
    """The mean over examples of sum_j |output w_j| (N2PS)."""

    def of(self, chain: Chain, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """One figure per unit."""
        return units.significance(chain, inputs, kept=kept)


@dataclass(frozen=True)
class FeatureChange(UnitStatistic):
    """The mean over examples of |the mean over positions of output times its gradient| (Molchanov et al.)."""

    error: Error

    def watch(self, subject: Subject) -> Collector:
        """At the places where the units appear."""
        return WatchChange(subject, error_of(self.error))

    def of(self, chain: Chain, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """One figure per unit."""
        return units.feature_taylor(chain, inputs, targets, self.error, kept=kept)


@dataclass(frozen=True)
class UnitMacs(UnitStatistic):
    """The multiply-accumulate operations that go with a unit."""

    def watch(self, subject: Subject) -> Collector:
        """By the layers that the units have a part in."""
        return CountMacs(subject)

    def of(self, chain: Chain, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """The same for all units of a group."""
        found = units.unit_macs(chain, inputs[:1])
        return {name: value.to(inputs.device) for name, value in found.items()}
