"""Statistics with one number per unit, or per piece of a maxout unit: true cost, estimates, operations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunekit import units
from prunekit.batches import Batch, Inputs, joined
from prunekit.distributed import means_over_processes, sum_over_processes
from prunekit.errors import InputError
from prunekit.graph import Coupled
from prunekit.losses import NOTHING, one_tensor, probability_error
from prunekit.measure import count
from prunekit.models import Maxout
from prunekit.statistics.collect import Collector, StatContext, Statistic, watched_calls
from prunekit.targets import device_of
from prunekit.units.gains import Progress
from prunekit.units.runner import Structure

Values = dict[str, Tensor]
"""By group of units, (units,) float64; NaN for units that are off already."""


class UnitStatistic(Statistic):
    """A request for one number per unit; its collector runs what it needs of the network by itself."""

    needs_loss = False

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
        return _Examples(self, coupled.chain or coupled, subject)

    @abstractmethod
    def of(
        self,
        structure: Structure,
        inputs: Inputs,
        targets: Any,
        kept: Mapping[str, Tensor],
        progress: Progress | None = None,
    ) -> Values:
        """The value of every unit, a mean over the examples; `progress` is told how far it is."""


class _Examples(Collector):
    def __init__(self, statistic: ExampleStatistic, structure: Structure, subject: StatContext) -> None:
        self._statistic = statistic
        self._structure = structure
        self._kept, self._task, self._progress = subject.kept, subject.task, subject.progress
        self._batches: list[Batch] = []

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        self._batches.append(_counted(replace(batch, targets=self._task.marked(batch.targets))))

    def finish(self) -> Values:
        sums: Values = {}
        count, before = sum(map(len, self._batches)), 0
        for shape in dict.fromkeys(map(_shape, self._batches)):  # sequences of one length together
            examples = joined([batch for batch in self._batches if _shape(batch) == shape])
            progress = self._progress and part_of(self._progress, before, len(examples), count)
            values = self._statistic.of(
                self._structure, examples.inputs, examples.targets, self._kept, progress
            )
            before += len(examples)
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value * len(examples)
        return means_over_processes(sums, count)


def part_of(progress: Progress, before: int, examples: int, count: int) -> Progress:
    """What tells of all examples, where it is told of some that come behind others."""

    def told(done: int, total: int) -> None:
        each = total // examples
        progress(before * each + done, count * each)

    return told


def _shape(batch: Batch) -> tuple[object, ...]:
    """The shapes of an example's tensors."""
    leaves = pytree.tree_leaves((batch.inputs, batch.targets))
    return tuple(leaf.shape[1:] if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves)


def _counted(batch: Batch) -> Batch:
    """The examples whose class numbers are not ignored: the others add nothing to an error.

    Raises:
        InputError: where positions of an example are ignored and others are not.
    """
    targets = batch.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point() or not bool((targets == NOTHING).any()):
        return batch
    if targets.dim() > 1:
        raise InputError(
            f"this score judges units by whole examples, but some positions of their targets are {NOTHING}, "
            "which the loss ignores: give examples without them, or a score by the gradient of the loss"
        )
    count, kept = len(batch), targets != NOTHING
    return batch.map(lambda each: each[kept] if each.dim() and len(each) == count else each)


Error = Literal["squared_error", "cross_entropy", "absolute_error"]


@dataclass(frozen=True)
class OracleChange(ExampleStatistic):
    """The exact change of the error when a unit is switched off: the oracle."""

    error: Error

    def of(
        self,
        structure: Structure,
        inputs: Inputs,
        targets: Any,
        kept: Mapping[str, Tensor],
        progress: Progress | None = None,
    ) -> Values:
        """E(off) - E(now)."""
        return units.oracle_changes(structure, inputs, targets, self.error, kept=kept, progress=progress)


@dataclass(frozen=True)
class TaylorChange(ExampleStatistic):
    """The change that a Taylor series in the unit's gain predicts, of first or second order."""

    error: Error
    order: int
    published: bool

    def of(
        self,
        structure: Structure,
        inputs: Inputs,
        targets: Any,
        kept: Mapping[str, Tensor],
        progress: Progress | None = None,
    ) -> Values:
        """-dE/dgain, plus half of d2E/dgain2: exact, or by the published diagonal recursion."""
        if self.order == 1:
            found = units.gain_derivatives(
                structure, inputs, targets, self.error, second=False, kept=kept, progress=progress
            )
            return {name: derivatives.first_order for name, derivatives in found.items()}
        if self.published:
            path = one_tensor(inputs, "the published recursion")
            found = units.diagonal_recursion(structure, path, targets, self.error, kept=kept)
        else:
            found = units.gain_derivatives(
                structure, inputs, targets, self.error, kept=kept, progress=progress
            )
        return {name: derivatives.second_order for name, derivatives in found.items()}


@dataclass(frozen=True)
class Relevance(ExampleStatistic):
    """-dE/dgain of the linear error, as a running average over batches (skeletonization)."""

    batch_size: int

    def of(
        self,
        structure: Structure,
        inputs: Inputs,
        targets: Any,
        kept: Mapping[str, Tensor],
        progress: Progress | None = None,
    ) -> Values:
        """The average after the last batch."""
        parts = Batch(inputs, targets).parts(self.batch_size)
        batches = ((part.inputs, part.targets) for part in parts)
        return units.relevance(structure, batches, error=probability_error, kept=kept)


@dataclass(frozen=True)
class UnitMacs(UnitStatistic):
    """The multiply-accumulate operations that go with a unit."""

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """By the layers that the units have a part in."""
        return MacsCollector(subject)


class MacsCollector(Collector):
    """The multiply-accumulate operations of the layers that a unit has a part in, by its share of each."""

    def __init__(self, subject: StatContext) -> None:
        assert subject.coupled is not None
        self._subject, self._coupled = subject, subject.coupled
        self._example: Inputs | None = None

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        """Remember one example: only its shape counts."""
        self._example = batch.examples(0, 1).inputs if self._example is None else self._example

    def finish(self) -> dict[str, Tensor]:
        """By group (units,) float64."""
        assert self._example is not None
        device = device_of(self._subject.model)
        macs = {layer.name: layer.macs for layer in count(self._subject.model, self._example).layers}
        tensors = dict(self._subject.model.named_parameters())
        found = {}
        for group in self._coupled.groups:
            cost = torch.zeros(group.units, dtype=torch.float64, device=device)
            for member in group.members:
                tensor = tensors.get(member.tensor)
                if tensor is not None and tensor.dim() > 1:
                    sizes = torch.tensor([len(unit) for unit in member.indices], device=cost.device)
                    layer = macs.get(member.tensor.rpartition(".")[0], 0)
                    cost += layer * sizes / tensor.shape[member.dim]
            found[group.name] = cost
        return found


@dataclass(frozen=True)
class MaxoutMaxima(Statistic):
    """By maxout layer: (units, pieces) float64, how often each piece was the maximum, over all positions."""

    def start(self, subject: StatContext) -> Collector:
        """A collector that counts while the network runs.

        Raises:
            InputError: if the recipe counts something else than maxout pieces.
        """
        layers = {name: subject.model.get_submodule(name) for name in subject.kept}
        found = {name: module for name, module in layers.items() if isinstance(module, Maxout)}
        if not found:
            raise InputError("this score ranks maxout pieces: give the recipe the granularity 'maxout_piece'")
        return _Counts(found)


class _Counts(Collector):
    def __init__(self, layers: Mapping[str, Maxout]) -> None:
        self._layers = layers
        self._counts = {
            name: torch.zeros(
                layer.units, layer.pieces, dtype=torch.float64, device=layer.layer.weight.device
            )
            for name, layer in layers.items()
        }

    def watching(self, batch: Batch) -> AbstractContextManager[None]:
        return watched_calls({name: layer.layer for name, layer in self._layers.items()}, self._count)

    @torch.no_grad()
    def _count(self, name: str, x: Tensor, outputs: Tensor) -> None:
        layer = self._layers[name]
        split = layer.split(outputs)
        dim = layer.dim % split.dim()
        # ties go to the first piece, as the gradient of a maximum over indices does
        winners = split.argmax(dim, keepdim=True)
        places = torch.zeros_like(split, dtype=torch.bool).scatter_(dim, winners, True)
        counts = places.movedim((dim - 1, dim), (0, 1)).flatten(2).sum(2, dtype=torch.float64)
        self._counts[name] += counts

    def finish(self) -> dict[str, Tensor]:
        sum_over_processes(list(self._counts.values()))
        return self._counts
