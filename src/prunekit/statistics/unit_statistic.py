"""Statistics of units that are measured on all examples at once, by the functions of `prunekit.units`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit.batches import Batch
from prunekit.errors import InputError
from prunekit.graph import Coupled
from prunekit.statistics.collect import Collector, StatContext, Statistic, sum_over_processes
from prunekit.units.runner import Structure

Values = dict[str, Tensor]
"""By group of units, (units,) float64; NaN for units that are off already."""


class UnitStatistic(Statistic):
    """A request for one number per unit; its collector runs what it needs of the network by itself."""

    @property
    def needs_loss(self) -> bool:
        """No pass through the whole network is looked at."""
        return False

    def start(self, subject: StatContext) -> Collector:
        """The collector for the subject's units.

        Raises:
            InputError: if the recipe's granularity counts weights, not units.
        """
        if subject.coupled is None:
            raise InputError("this score ranks units: give the recipe the granularity 'unit'")
        return self.watch(subject, subject.coupled)

    @abstractmethod
    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """The collector for coupled groups."""


class ExampleStatistic(UnitStatistic):
    """Measured by `prunekit.units` on all examples at once; its functions bound their memory themselves."""

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """A collector that keeps the examples; on a path the same is found faster."""
        return _Examples(self, subject.chain or coupled, subject.kept)

    @abstractmethod
    def of(self, structure: Structure, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """The value of every unit, a mean over the examples."""


class _Examples(Collector):
    def __init__(self, statistic: ExampleStatistic, structure: Structure, kept: Mapping[str, Tensor]) -> None:
        self._statistic = statistic
        self._structure = structure
        self._kept = kept
        self._batches: list[Batch] = []

    def batch(self, batch: Batch, loss: Tensor) -> None:
        self._batches.append(batch)

    def finish(self) -> Values:
        inputs = torch.cat([inputs for inputs, _ in self._batches])
        targets = torch.cat([targets for _, targets in self._batches])
        values = self._statistic.of(self._structure, inputs, targets, self._kept)
        examples = torch.tensor(float(len(inputs)), dtype=torch.float64, device=inputs.device)
        sums = {name: value * examples for name, value in values.items()}
        sum_over_processes([*sums.values(), examples])
        return {name: total / examples for name, total in sums.items()}
