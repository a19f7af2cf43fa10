"""Statistics of units' activations: mean, variance, share of zeros, correlations, and first-order Taylor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.batches import Batch, without_padding
from prunekit.distributed import means_over_processes, sum_over_processes
from prunekit.errors import InputError
from prunekit.graph import Coupled, Group, Place, over_entries, watched
from prunekit.graph.activation_taps import FeatureMap, Key
from prunekit.losses import NOTHING, class_axis
from prunekit.statistics.collect import Collector, StatContext, following
from prunekit.statistics.moments import Moments
from prunekit.statistics.unit_statistics import Error, UnitStatistic
from prunekit.units.runner import error_of

What = Literal["mean", "variance", "zeros", "irreplaceable", "correlation"]


@dataclass(frozen=True)
class ActivationStats(UnitStatistic):
    """How the outputs of units behave: by group (units,) float64, or (units, units) of the correlations.

    Every example and position is an observation, and so is each of a unit's entries. Units that are off are
    constantly 0.

    Attributes:
        what: "mean" and "variance" (divided by the number of observations) of what the next layer reads;
            "zeros", the fraction of outputs that are exactly 0 behind the group's last activation, before any
            pooling or norm: the average percentage of zeros, APoZ, of Hu et al. (arXiv 1607.03250);
            "correlation", Pearson's r, 0 in the rows and columns of constant units, the mean over the places
            where the units appear; "irreplaceable", 1 - max r^2 over the other units: the part of the unit's
            variance that is left when the best other unit, scaled and shifted, stands in for it, 0 for
            constant units, which a bias can replace.
    """

    what: What

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """At the places where the units appear.

        Raises:
            InputError: where units are to be compared whose numbers of entries differ.
        """
        return ZerosCollector(subject) if self.what == "zeros" else MomentsCollector(subject, self.what)


class ActivationCollector(Collector):
    """Runs the network by itself and looks at every place of every group; values of places are combined.

    Args:
        subject: with coupled groups; units of them that are off are constantly 0.
        differentiable: whether derivatives by what is at the places are taken.

    Raises:
        ModelError: where the units of a group appear at no place.
    """

    def __init__(self, subject: StatContext, *, differentiable: bool = False) -> None:
        assert subject.coupled is not None
        self._model, self._task = subject.model, subject.task
        self._coupled = subject.coupled
        self._differentiable = differentiable
        self.places = {group.name: self._coupled.places(group) for group in self._coupled.groups}
        self.off = {name: kept for name, kept in subject.kept.items() if not bool(kept.all())}
        self.wanted = {place: self.off.get(name) for name, places in self.places.items() for place in places}

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        """Run the network on the batch."""
        with (
            watched(self._model, self.wanted, unmasked=self._differentiable) as seen,
            following(self._model.parameters() if self._differentiable else ()),
            torch.set_grad_enabled(self._differentiable),
        ):
            outputs = self._task.run(
                self._model, batch.map(self._followed if self._differentiable else Tensor.detach)
            )
        self._real = self._task.real_positions(batch, self._model)
        if not self._differentiable:
            seen = {key: without_padding(value, self._real) for key, value in seen.items()}
        self.see(seen, outputs, self._task.marked(batch.targets))

    @staticmethod
    def _followed(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.detach().requires_grad_().clone()  # a copy, as a network may work on it in place

    @abstractmethod
    def see(self, seen: Mapping[Key, Tensor], outputs: Tensor, targets: Tensor) -> None:
        """Take in what was at the places, by their keys, in one run of the network."""

    def together(self, group: Group, value: Callable[[Place, int], Tensor]) -> Tensor:
        """(units,) float64: the values of all places of a group, NaN for units that do not appear there."""
        return self._coupled.together([value(place, group.units) for place in self.places[group.name]])


class ZerosCollector(ActivationCollector):
    """The share of zeros of units, behind the activation."""

    def __init__(self, subject: StatContext) -> None:
        super().__init__(subject)
        self._zeros: dict[Place, Tensor] = {}  # (entries + 1,): how many of each entry, and of how many
        self._silences = {group.name: self._coupled.silences(group) for group in self._coupled.groups}
        # nothing else is looked at, but units that are off are so everywhere
        self.wanted = {place: kept for place, kept in self.wanted.items() if kept is not None}
        self.wanted |= {place: None for places in self._silences.values() for place in places}

    @torch.no_grad()
    def see(self, seen: Mapping[Key, Tensor], outputs: Tensor, targets: Tensor) -> None:
        """Count zeros."""
        for place in (place for places in self._silences.values() for place in places):
            x = seen[place.key] if place.then is None else place.then(seen[place.key])
            axis = place.axis % x.dim()
            zeros = (x == 0).sum([dim for dim in range(x.dim()) if dim != axis])
            counts = torch.cat([zeros, zeros.new_tensor([x.numel() // len(zeros)])]).double()
            self._zeros[place] = self._zeros.get(place, 0) + counts

    def finish(self) -> dict[str, Tensor]:
        """By group (units,) float64."""
        sum_over_processes(list(self._zeros.values()))
        return {group.name: self._shares(group) for group in self._coupled.groups}

    def _shares(self, group: Group) -> Tensor:
        found = []
        for place in self._silences[group.name]:
            counts = self._zeros[place]
            unit, there = place.units.to(counts.device), (place.units >= 0).to(counts.device)
            found.append(over_entries(counts[:-1][there] / counts[-1], unit[there], group.units, "mean"))
        shares = self._coupled.together(found)
        return shares.masked_fill(~self.off[group.name], 1.0) if group.name in self.off else shares


class MomentsCollector(ActivationCollector):
    """The mean or variance of units, their correlations, or how little other units can replace them.

    Raises:
        InputError: where units are to be compared whose numbers of entries differ.
    """

    def __init__(self, subject: StatContext, what: What) -> None:
        super().__init__(subject)
        self._what = what
        self._pairs = what in ("correlation", "irreplaceable")
        self._moments: dict[Place, Moments] = {}
        for name, places in self.places.items():
            if self._pairs and not all(map(_is_even, places)):
                raise InputError(
                    f"the units of {name!r} are of different sizes, so they cannot stand in for each "
                    "other: name the group in `ignore`"
                )

    @torch.no_grad()
    def see(self, seen: Mapping[Key, Tensor], outputs: Tensor, targets: Tensor) -> None:
        """Add up first and second moments."""
        for place in (place for places in self.places.values() for place in places):
            rows = seen[place.key].movedim(place.axis, -1).flatten(0, -2)
            if _is_even(place):
                rows = _side_by_side(rows, place)
            if place not in self._moments:
                self._moments[place] = Moments(1, rows.shape[1], pairs=self._pairs, device=rows.device)
            self._moments[place].add(rows.unsqueeze(0))

    def finish(self) -> dict[str, Tensor]:
        """By group (units,) float64, or (units, units): what was asked for, reduced over all processes."""
        for moments in self._moments.values():
            moments.reduce()
        groups = self._coupled.groups
        if self._what == "correlation":
            found = {}
            for group in groups:
                each = [self._correlation(place, group.units) for place in self.places[group.name]]
                found[group.name] = torch.stack(each).nanmean(0).nan_to_num(0.0)
            return found
        value = self._irreplaceable if self._pairs else self._mean_or_variance
        return {group.name: self.together(group, value) for group in groups}

    def _irreplaceable(self, place: Place, units: int) -> Tensor:
        found = self._correlation(place, units)
        there = ~found.diagonal().isnan()
        correlation = found.nan_to_num(0.0)
        best = correlation.abs().fill_diagonal_(0.0).amax(1)
        left = (1 - best.square()).masked_fill(correlation.diagonal() == 0, 0.0)
        return left.masked_fill(~there, torch.nan)

    def _mean_or_variance(self, place: Place, units: int) -> Tensor:
        """(units,) at a place."""
        moments = self._moments[place]
        mean, variance = moments.mean[0], moments.variance[0]
        unit = _there(place) if _is_even(place) else place.units
        there, unit = (unit >= 0).to(mean.device), unit.to(mean.device)
        unit, mean, variance = unit[there], mean[there], variance[there]
        means = over_entries(mean, unit, units, "mean")
        if self._what == "mean":
            return means
        return over_entries(variance + (mean - means[unit]).square(), unit, units, "mean")

    def _correlation(self, place: Place, units: int) -> Tensor:
        """(units, units) at a place; NaN for units that do not appear there."""
        correlation = self._moments[place].correlation[0]
        there = _there(place).to(correlation.device)
        found = correlation.new_full((units, units), torch.nan)
        found[there.unsqueeze(1), there] = correlation
        return found


def _is_even(place: Place) -> bool:
    """Whether all units that appear at a place have as many entries."""
    return len(set(torch.bincount(place.units[place.units >= 0])[_there(place)].tolist())) == 1


def _there(place: Place) -> Tensor:
    """The units that appear at a place, in order."""
    return torch.unique(place.units[place.units >= 0])


def _side_by_side(rows: Tensor, place: Place) -> Tensor:
    """(observations, units that appear) of (observations, entries), where all have as many entries."""
    order = place.units.argsort(stable=True)[int((place.units < 0).sum()) :]
    apart = torch.unflatten(rows[:, order.to(rows.device)], 1, (len(_there(place)), -1))
    return apart.transpose(1, 2).flatten(0, 1)


class FeatureMapStatistic(UnitStatistic):
    """The mean over examples of |the mean over positions of numbers made of a feature map and derivatives|.

    The feature map is the unit's output at all its positions, before any pooling.
    """

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """At the places where the units appear."""
        return FeatureMapCollector(subject, self)

    @abstractmethod
    def differentiated(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar, the sum over the examples (n, ...) of what is differentiated."""

    @abstractmethod
    def numbers(self, values: Tensor, derivatives: Tensor) -> Tensor:
        """The numbers whose means are taken, from the values of a map and the derivatives by them."""


@dataclass(frozen=True)
class FirstOrderTaylor(FeatureMapStatistic):
    """The mean over examples of |the mean over positions of output times its gradient| (Molchanov et al.)."""

    error: Error

    def differentiated(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The error; where each position has a class, of an example the mean over those that count."""
        if targets.is_floating_point():
            return error_of(self.error)(outputs, targets) * len(targets)
        counted = (targets != NOTHING).flatten(1) if targets.dim() > 1 else (targets != NOTHING)
        if not bool(counted.any()):
            return outputs.sum() * 0.0
        if self.error == "cross_entropy" and targets.dim() > 1:
            logits = outputs.movedim(class_axis(outputs, targets), 1)
            each = F.cross_entropy(logits, targets, ignore_index=NOTHING, reduction="none").flatten(1)
            return (each.sum(1) / counted.sum(1).clamp(min=1)).sum()
        return error_of(self.error)(outputs, targets) * counted.sum()

    def numbers(self, values: Tensor, derivatives: Tensor) -> Tensor:
        """The products."""
        return values * derivatives


class FeatureMapCollector(ActivationCollector):
    """Differentiates by all feature maps, and adds up what the statistic makes of each example."""

    def __init__(self, subject: StatContext, statistic: FeatureMapStatistic) -> None:
        super().__init__(subject, differentiable=True)
        self._statistic = statistic
        self._sums: dict[Place, Tensor] = {}
        self._examples = 0
        self._maps = {group.name: self._coupled.feature_maps(group) for group in self._coupled.groups}
        self.wanted = {}
        for name, maps in self._maps.items():
            for each in maps:
                for place in [reader for reader, _ in each.readers] or [each.place]:
                    self.wanted[place] = self.off.get(name)
                self.wanted.setdefault(each.place, None)

    def see(self, seen: Mapping[Key, Tensor], outputs: Tensor, targets: Tensor) -> None:
        """Add up over the examples."""
        outputs = self._task.tensor(outputs, "the gradient of the error")
        total = self._statistic.differentiated(outputs, targets)
        gradients = torch.autograd.grad(total, list(seen.values()), materialize_grads=True)
        by_key = dict(zip(seen, gradients, strict=True))
        for name, maps in self._maps.items():
            size = self._coupled.group(name).units
            for each in maps:
                place = each.place
                values, derivatives = _at_map(each, seen, by_key)
                numbers = self._statistic.numbers(values, derivatives).movedim(place.axis, -1).double()
                means = self._over_positions(numbers) if numbers.dim() > 2 else numbers
                units, there = place.units.to(means.device), (place.units >= 0).to(means.device)
                found = over_entries(means[:, there], units[there], size, "mean").abs().sum(0)
                self._sums[place] = self._sums.get(place, 0) + found
        self._examples += len(targets)

    def _over_positions(self, numbers: Tensor) -> Tensor:
        """(examples, entries): the means over the positions that are not padding."""
        real = self._real
        if real is None or numbers.shape[:2] != real.shape:
            return numbers.flatten(1, -2).mean(1)
        by_position = numbers.flatten(2, -2).mean(2) if numbers.dim() > 3 else numbers
        real = real.to(numbers.dtype)
        return (by_position * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True).clamp(min=1)

    def finish(self) -> dict[str, Tensor]:
        """By group (units,) float64: means over the examples of all processes; 0 for units that are off."""
        means = means_over_processes(self._sums, self._examples)
        found = {
            name: self._coupled.together([means[each.place] for each in maps])
            for name, maps in self._maps.items()
        }
        return {
            name: value.masked_fill(~self.off[name], 0.0) if name in self.off else value
            for name, value in found.items()
        }


def _at_map(
    found: FeatureMap, seen: Mapping[Key, Tensor], by_key: Mapping[Key, Tensor]
) -> tuple[Tensor, Tensor]:
    """The values of a feature map and the derivatives by them.

    Derivatives by values that no layer takes or gives come back from what is pooled from them.
    """
    key, then = found.place.key, found.place.then
    if then is None:
        return seen[key].detach(), by_key[key]
    values = then(seen[key].detach()).requires_grad_()
    derivatives = torch.zeros_like(values)
    for reader, pooling in found.readers:
        with torch.enable_grad():
            pooled = pooling(values)
        derivatives += torch.autograd.grad(pooled, values, by_key[reader.key].view_as(pooled))[0]
    return values.detach(), derivatives
