"""Statistics of what units are worth: their true cost, estimates of it, and what they cost to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunekit import units
from prunekit.batches import Batch
from prunekit.graph import Coupled, Place, over_entries
from prunekit.graph.activation_taps import Key
from prunekit.losses import Loss
from prunekit.measure import count
from prunekit.statistics.activity import ActivationCollector
from prunekit.statistics.collect import Collector, StatContext, sum_over_processes
from prunekit.statistics.unit_statistic import ExampleStatistic, UnitStatistic, Values
from prunekit.units.loss_delta import error_of
from prunekit.units.runner import Structure

Error = Literal["squared_error", "cross_entropy", "absolute_error"]


@dataclass(frozen=True)
class OracleChange(ExampleStatistic):
    """The exact change of the error when a unit is switched off: the oracle."""

    error: Error

    def of(self, structure: Structure, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """E(off) - E(now)."""
        return units.oracle_changes(structure, inputs, targets, self.error, kept=kept)


@dataclass(frozen=True)
class TaylorChange(ExampleStatistic):
    """The change that a Taylor series in the unit's gain predicts, of first or second order."""

    error: Error
    order: int
    published: bool

    def of(self, structure: Structure, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """-dE/dgain, plus half of d2E/dgain2: exact, or by the published diagonal recursion."""
        if self.order == 1:
            found = units.gain_derivatives(structure, inputs, targets, self.error, second=False, kept=kept)
            return {name: derivatives.first_order for name, derivatives in found.items()}
        if self.published:
            found = units.diagonal_recursion(structure, inputs, targets, self.error, kept=kept)
        else:
            found = units.gain_derivatives(structure, inputs, targets, self.error, kept=kept)
        return {name: derivatives.second_order for name, derivatives in found.items()}


@dataclass(frozen=True)
class Relevance(ExampleStatistic):
    """-dE/dgain of the linear error, as a running average over batches (skeletonization)."""

    batch_size: int

    def of(self, structure: Structure, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """The average after the last batch."""
        starts = range(0, len(inputs), self.batch_size)
        batches = ((inputs[k : k + self.batch_size], targets[k : k + self.batch_size]) for k in starts)
        return units.relevance(structure, batches, kept=kept)


@dataclass(frozen=True)
class FirstOrderTaylor(UnitStatistic):
    """The mean over examples of |the mean over positions of output times its gradient| (Molchanov et al.)."""

    error: Error

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """At the places where the units appear."""
        return FirstOrderTaylorCollector(subject, error_of(self.error))


@dataclass(frozen=True)
class UnitMacs(UnitStatistic):
    """The multiply-accumulate operations that go with a unit."""

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """By the layers that the units have a part in."""
        return MacsCollector(subject)


class FirstOrderTaylorCollector(ActivationCollector):
    """The mean over examples of |the mean over positions and entries of output times its gradient|."""

    def __init__(self, subject: StatContext, error: Loss) -> None:
        super().__init__(subject, Coupled.places, differentiable=True)
        self._error = error
        # of a network that is frozen, too: autograd follows its weights for the length of the pass
        self._frozen = [weight for weight in self._model.parameters() if not weight.requires_grad]
        for weight in self._frozen:
            weight.requires_grad_(weight.is_floating_point())
        self._sums: dict[Place, Tensor] = {}
        self._examples = torch.zeros((), dtype=torch.float64)

    def see(self, seen: Mapping[Key, Tensor], outputs: Tensor, targets: Tensor) -> None:
        """Add up the changes of all examples."""
        total = self._error(outputs, targets) * len(targets)
        gradients = torch.autograd.grad(total, list(seen.values()), materialize_grads=True)
        by_key = dict(zip(seen, gradients, strict=True))
        with torch.no_grad():
            for name, places in self.places.items():
                for place in places:
                    product = (seen[place.key] * by_key[place.key]).movedim(place.axis, -1)
                    each = product.double().flatten(1, -2).mean(1) if product.dim() > 2 else product.double()
                    units, there = place.units.to(each.device), (place.units >= 0).to(each.device)
                    size = self._coupled.group(name).units
                    change = over_entries(each[:, there], units[there], size, "mean").abs().sum(0)
                    self._sums[place] = self._sums.get(place, 0) + change
        self._examples += len(targets)

    def figure(self, place: Place, units: int) -> Tensor:
        """The mean over all examples."""
        total, examples = self._sums[place], self._examples.to(self._sums[place].device)
        examples = examples.clone()
        sum_over_processes([total, examples])
        return total / examples

    def close(self) -> None:
        """Freeze again what was frozen."""
        for weight in self._frozen:
            weight.requires_grad_(False)


class MacsCollector(Collector):
    """The multiply-accumulate operations of the layers that a unit has a part in, by its share of each."""

    def __init__(self, subject: StatContext) -> None:
        assert subject.coupled is not None
        self._subject, self._coupled = subject, subject.coupled
        self._example: Tensor | None = None

    def batch(self, batch: Batch, loss: Tensor) -> None:
        """Remember one example: only its shape counts."""
        self._example = batch[0][:1] if self._example is None else self._example

    def finish(self) -> dict[str, Tensor]:
        """By group (units,) float64."""
        assert self._example is not None
        macs = {layer.name: layer.macs for layer in count(self._subject.model, self._example).layers}
        tensors = dict(self._subject.model.named_parameters())
        found = {}
        for group in self._coupled.groups:
            cost = torch.zeros(group.units, dtype=torch.float64, device=self._example.device)
            for member in group.members:
                tensor = tensors.get(member.tensor)
                if tensor is not None and tensor.dim() > 1:
                    sizes = torch.tensor([len(unit) for unit in member.indices], device=cost.device)
                    layer = macs.get(member.tensor.rpartition(".")[0], 0)
                    cost += layer * sizes / tensor.shape[member.dim]
            found[group.name] = cost
        return found
