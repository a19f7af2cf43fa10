"""What is measured of units of coupled groups while the network runs: what its layers take and give."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from prunekit.batches import Batch
from prunekit.errors import InputError
from prunekit.graph import Coupled, Group, Place, over_entries, watched
from prunekit.graph.places import Key
from prunekit.losses import Loss
from prunekit.measure import count
from prunekit.statistics.collect import Collector, Subject
from prunekit.statistics.moments import Moments
from prunekit.statistics.processes import sum_over_processes
from prunekit.units import Activity

What = Literal["mean", "variance", "zeros", "irreplaceable"]


class Watch(Collector):
    """Runs the network by itself and looks at every place of every group; figures of places are combined.

    Args:
        subject: with coupled groups.
        places: of a group.
        differentiable: whether derivatives by what is at the places are taken.

    Raises:
        ModelError: where the units of a group appear at no place.
    """

    def __init__(
        self,
        subject: Subject,
        places: Callable[[Coupled, Group], Sequence[Place]],
        *,
        differentiable: bool = False,
    ) -> None:
        assert subject.coupled is not None
        self._model = subject.model
        self._coupled = subject.coupled
        self._differentiable = differentiable
        self.places = {group.name: tuple(places(self._coupled, group)) for group in self._coupled.groups}

    def batch(self, batch: Batch, loss: Tensor) -> None:
        """Run the network on the batch."""
        wanted = [place for places in self.places.values() for place in places]
        with (
            watched(self._model, wanted) as seen,
            torch.set_grad_enabled(self._differentiable),
        ):
            outputs = self._model(batch[0])
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


class WatchBehaviour(Watch):
    """The mean, variance or share of zeros of units, or how little other units can replace them.

    Every example and position is an observation, and so is each of a unit's entries. Zeros are counted behind
    the activation before any pooling, if the activation is a layer of its own, else where the units are read.

    Raises:
        InputError: where units are to be compared whose numbers of entries differ.
    """

    def __init__(self, subject: Subject, what: What) -> None:
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
            found[_there(place).to(found.device)] = _irreplaceable(moments)
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


class WatchChange(Watch):
    """The mean over examples of |the mean over positions and entries of output times its gradient|."""

    def __init__(self, subject: Subject, error: Loss) -> None:
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
                    units = self._coupled.group(name).units
                    change = torch.stack([_over(row, place, units) for row in each]).abs().sum(0)
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


class CountMacs(Collector):
    """The multiply-accumulate operations of the layers that a unit has a part in, by its share of each."""

    def __init__(self, subject: Subject) -> None:
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


def _irreplaceable(moments: Moments) -> Tensor:
    covariance = moments.covariance[0]
    variance = covariance.diagonal()
    alive = variance > 0
    scale = torch.where(alive, variance, 1.0).sqrt()
    correlation = (covariance / scale.outer(scale)).clamp(-1, 1) * alive.outer(alive)
    correlation = correlation.diagonal_scatter(alive.to(correlation.dtype))
    return Activity(moments.count, moments.mean[0], variance, variance, correlation).irreplaceable


def _over(row: Tensor, place: Place, units: int) -> Tensor:
    there = (place.units >= 0).to(row.device)
    return over_entries(row[there], place.units.to(row.device)[there], units, "mean")
