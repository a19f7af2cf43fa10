"""Statistics of units' activations: mean, variance, share of zeros, correlations, and first-order Taylor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunekit.batches import Batch
from prunekit.errors import InputError
from prunekit.graph import Coupled, Group, Place, over_entries, watched
from prunekit.graph.activation_taps import Key
from prunekit.graph.chain import Chain
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.statistics.collect import Collector, StatContext, sum_over_processes
from prunekit.statistics.moments import Moments
from prunekit.statistics.unit_statistics import Error, ExampleStatistic, UnitStatistic, Values
from prunekit.units.chain_layers import by_unit, leaves_rows, pointwise, unit_dim, with_gains
from prunekit.units.chain_runner import ChainRunner, Link, pieces
from prunekit.units.oracle import checked_kept
from prunekit.units.runner import BUDGET_BYTES, Structure, error_of

What = Literal["mean", "variance", "zeros", "irreplaceable"]


@dataclass(frozen=True)
class ActivationStats(ExampleStatistic):
    """How a unit's output behaves: mean, variance, share of zeros, or how little others can replace it."""

    what: What

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """At the places where the units appear."""
        if subject.chain is not None:
            return super().watch(subject, coupled)
        return ActivationStatsCollector(subject, self.what)

    def of(self, structure: Structure, inputs: Tensor, targets: Tensor, kept: Mapping[str, Tensor]) -> Values:
        """One figure per unit, see `Activity`."""
        assert isinstance(structure, Chain)
        found = activity(structure, inputs, pairs=self.what == "irreplaceable", kept=kept)
        return {name: getattr(activity, self.what) for name, activity in found.items()}


@dataclass(frozen=True)
class Activity:
    """What the units of one group did.

    Each example, and each position of a filter's map, is one observation of what the next layer reads.

    Attributes:
        observations: how many there were.
        mean: (units,) float64.
        variance: (units,) float64, divided by the number of observations.
        zeros: (units,) float64: the fraction of outputs that are exactly 0 behind the group's last activation
            (before any pooling): the average percentage of zeros, APoZ, of Hu et al. (arXiv 1607.03250).
        correlation: (units, units) float64: Pearson's r; 0 in the rows and columns of constant units, those
            that are off included. Empty (0, 0) where pairs were not asked for.
    """

    observations: int
    mean: Tensor
    variance: Tensor
    zeros: Tensor
    correlation: Tensor

    @property
    def partner(self) -> Tensor:
        """(units,) int64: which other unit can stand in best; -1 for constant units and where all r are 0."""
        best, partner = self.correlation.abs().fill_diagonal_(0.0).max(1)
        return partner.masked_fill(best == 0, -1)

    @property
    def irreplaceable(self) -> Tensor:
        """(units,) float64: 1 - max r^2 over the other units: the part of the unit's variance that is left
        when the best other unit, scaled and shifted, stands in for it. Constant units, which a bias can
        replace, count as 0."""
        return irreplaceable(self.correlation)


def irreplaceable(correlation: Tensor) -> Tensor:
    """(units,) from (units, units) correlations: 1 - max r^2 over the other units; 0 for constant units."""
    best = correlation.abs().fill_diagonal_(0.0).amax(1)
    return (1 - best.square()).masked_fill(correlation.diagonal() == 0, 0.0)


def activity(
    chain: Chain,
    inputs: Tensor | Iterable[Tensor],
    *,
    pairs: bool = True,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, Activity]:
    """The activity of every unit, in one pass over the data, added up in float64.

    Args:
        chain: the network, seen in evaluation mode.
        inputs: (N, ...), or batches of them, on the network's device.
        pairs: whether the correlations are wanted.
        kept: by group (units,) booleans, False for units that are off: they are constantly 0.
        budget_bytes: memory for activations.

    Raises:
        InputError: for no examples, or such as do not fit the network.
    """
    kept = checked_kept(chain, kept)
    moments: dict[str, Moments] = {}
    zeros: dict[str, Tensor] = {}
    seen: dict[str, int] = {}
    with evaluating(*chain.modules), torch.no_grad():
        for flow, piece in pieces(chain, inputs, budget_bytes // 2):  # half, since sums are taken in float64
            readers = {link.position: link for link in flow.links}
            silent = {_activation(flow, link): link for link in flow.links}
            x = piece
            for place in range(flow.links[-1].position + 1):
                if place in readers:
                    link = readers[place]
                    x = _masked(x, link, kept)
                    name, rows = link.group.name, _observations(x, link).double()
                    if name not in moments:
                        moments[name] = Moments(1, link.group.units, pairs=pairs, device=x.device)
                    moments[name].add(rows.unsqueeze(0))
                if place in silent:  # the place before a stage is that behind the last one
                    name = silent[place].group.name
                    each = _by_producer(flow, silent[place], x)
                    zeros[name] = zeros.get(name, 0) + (each == 0).sum(1)
                    seen[name] = seen.get(name, 0) + each.shape[1]
                x = chain.stages[place].run(x)
    found = {}
    for name, moment in moments.items():
        silence = zeros[name].double() / seen[name]
        if name in kept:
            silence[~kept[name]] = 1.0
        r = moment.correlation[0] if pairs else silence.new_empty(0, 0)
        found[name] = Activity(moment.count, moment.mean[0], moment.variance[0], silence, r)
    return found


def _masked(x: Tensor, link: Link, kept: Mapping[str, Tensor]) -> Tensor:
    if link.group.name not in kept:
        return x
    return with_gains(x, link.group, unit_dim(link.consumer, x), kept[link.group.name])


def _observations(x: Tensor, link: Link) -> Tensor:
    """(observations, units) of a consumer's input."""
    dim = unit_dim(link.consumer, x)
    return by_unit(x, link.group, dim).movedim(dim, -1).flatten(0, -2)


def _activation(flow: ChainRunner, link: Link) -> int:
    """The stage behind the last activation between the units' producer and their consumer; the consumer if
    there is none."""
    place = link.position
    while place:
        stage = flow.chain.stages[place - 1]
        if stage.name == link.group.producer or (link.group.producer is None and place == 1):
            return link.position
        if pointwise(stage) is not None and not leaves_rows(stage):
            return place
        place -= 1
    return link.position


def _by_producer(flow: ChainRunner, link: Link, x: Tensor) -> Tensor:
    """(units, observations) of what lies somewhere between the units' producer and their consumer."""
    names = {stage.name: stage.module for stage in flow.chain.stages if stage.module is not None}
    producer = names.get(link.group.producer or link.group.consumer)
    dim = x.dim() - 1 if isinstance(producer, nn.Linear) else 1
    return torch.unflatten(x, dim, (link.group.units, -1)).movedim(dim, 0).flatten(1)


class ActivationCollector(Collector):
    """Runs the network by itself and looks at every place of every group; figures of places are combined.

    Args:
        subject: with coupled groups; units of them that are off are constantly 0.
        places: of a group.
        differentiable: whether derivatives by what is at the places are taken.

    Raises:
        ModelError: where the units of a group appear at no place.
    """

    def __init__(
        self,
        subject: StatContext,
        places: Callable[[Coupled, Group], Sequence[Place]],
        *,
        differentiable: bool = False,
    ) -> None:
        assert subject.coupled is not None
        self._model = subject.model
        self._coupled = subject.coupled
        self._differentiable = differentiable
        self.places = {group.name: tuple(places(self._coupled, group)) for group in self._coupled.groups}
        off = {name: kept for name, kept in subject.kept.items() if not bool(kept.all())}
        self._wanted = {place: off.get(name) for name, places in self.places.items() for place in places}

    def batch(self, batch: Batch, loss: Tensor) -> None:
        """Run the network on the batch."""
        with (
            watched(self._model, self._wanted) as seen,
            torch.set_grad_enabled(self._differentiable),
        ):
            inputs = batch[0].detach()
            if self._differentiable and inputs.is_floating_point():
                inputs = inputs.requires_grad_().clone()  # a copy, as a network may work on it in place
            outputs = self._model(inputs)
        self.see(seen, outputs, batch[1])

    @abstractmethod
    def see(self, seen: Mapping[Key, Tensor], outputs: Tensor, targets: Tensor) -> None:
        """Take in what was at the places, by their keys, in one run of the network."""

    @abstractmethod
    def figure(self, place: Place, units: int) -> Tensor:
        """(units,) float64, reduced over all processes; NaN for units that do not appear there."""

    def finish(self) -> dict[str, Tensor]:
        """By group (units,) float64."""
        return {
            name: self._coupled.together(
                [self.figure(place, self._coupled.group(name).units) for place in places]
            )
            for name, places in self.places.items()
        }


class ActivationStatsCollector(ActivationCollector):
    """The mean, variance or share of zeros of units, or how little other units can replace them.

    Every example and position is an observation, and so is each of a unit's entries. Zeros are counted behind
    the activation before any pooling, if the activation is a layer of its own, else where the units are read.

    Raises:
        InputError: where units are to be compared whose numbers of entries differ.
    """

    def __init__(self, subject: StatContext, what: What) -> None:
        super().__init__(subject, Coupled.silences if what == "zeros" else Coupled.places)
        self._what = what
        self._moments: dict[Place, Moments] = {}
        for name, places in self.places.items():
            for place in places:
                if what == "irreplaceable" and len(set(_sizes(place))) != 1:
                    raise InputError(
                        f"the units of {name!r} are of different sizes, so they cannot stand in for each "
                        "other: name the group in `ignore`"
                    )

    @torch.no_grad()
    def see(self, seen: Mapping[Key, Tensor], outputs: Tensor, targets: Tensor) -> None:
        """Add up first and second moments."""
        for place in self._places():
            rows = seen[place.key].movedim(place.axis, -1).flatten(0, -2)
            pairs = self._what == "irreplaceable"
            if pairs:
                rows = _side_by_side(rows, place)
            elif self._what == "zeros":
                rows = (rows == 0).double()
            if place not in self._moments:
                self._moments[place] = Moments(1, rows.shape[1], pairs=pairs, device=rows.device)
            self._moments[place].add(rows.unsqueeze(0))

    def figure(self, place: Place, units: int) -> Tensor:
        """What was asked for."""
        moments = self._moments[place]
        moments.reduce()
        if self._what == "irreplaceable":
            found = moments.mean.new_full((units,), torch.nan)
            found[_there(place).to(found.device)] = irreplaceable(moments.correlation[0])
            return found
        there = (place.units >= 0).to(moments.mean.device)
        unit, mean = place.units.to(there.device)[there], moments.mean[0][there]
        means = over_entries(mean, unit, units, "mean")
        if self._what != "variance":
            return means
        apart = (mean - means[unit]).square()
        return over_entries(moments.variance[0][there] + apart, unit, units, "mean")

    def _places(self) -> list[Place]:
        return [place for places in self.places.values() for place in places]


def _sizes(place: Place) -> list[int]:
    """How many entries each unit has that appears at a place."""
    sizes: list[int] = torch.bincount(place.units[place.units >= 0])[_there(place)].tolist()
    return sizes


def _there(place: Place) -> Tensor:
    """The units that appear at a place, in order."""
    return torch.unique(place.units[place.units >= 0])


def _side_by_side(rows: Tensor, place: Place) -> Tensor:
    """(observations, units that appear) of (observations, entries), where all have as many entries."""
    order = place.units.argsort(stable=True)[int((place.units < 0).sum()) :]
    apart = torch.unflatten(rows[:, order.to(rows.device)], 1, (len(_there(place)), -1))
    return apart.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class FirstOrderTaylor(UnitStatistic):
    """The mean over examples of |the mean over positions of output times its gradient| (Molchanov et al.)."""

    error: Error

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """At the places where the units appear."""
        return FirstOrderTaylorCollector(subject, error_of(self.error))


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
