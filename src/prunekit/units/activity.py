"""What units do on data: mean, variance, how often they are silent, and how alike they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.modes import evaluating
from prunekit.structure.chain import Chain
from prunekit.units.flow import BUDGET_BYTES, Flow, Link
from prunekit.units.layers import by_unit, leaves_rows, pointwise, unit_dim, with_gains
from prunekit.units.moments import Moments
from prunekit.units.oracle import checked_kept
from prunekit.units.streaming import pieces


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
        return self._best()[1]

    @property
    def irreplaceable(self) -> Tensor:
        """(units,) float64: 1 - max r^2 over the other units: the part of the unit's variance that is left
        when the best other unit, scaled and shifted, stands in for it. Constant units, which a bias can
        replace, count as 0."""
        best, _ = self._best()
        return (1 - best.square()).masked_fill(self.correlation.diagonal() == 0, 0.0)

    def _best(self) -> tuple[Tensor, Tensor]:
        others = self.correlation.abs().fill_diagonal_(0.0)
        best, partner = others.max(1)
        return best, partner.masked_fill(best == 0, -1)


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
    moments = {group.name: Moments(pairs=pairs) for group in chain.groups}
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
                    moments[link.group.name].add(_observations(x, link))
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
        found[name] = Activity(moment.count, moment.mean, moment.variance, silence, moment.correlation)
    return found


def _masked(x: Tensor, link: Link, kept: Mapping[str, Tensor]) -> Tensor:
    if link.group.name not in kept:
        return x
    return with_gains(x, link.group, unit_dim(link.consumer, x), kept[link.group.name])


def _observations(x: Tensor, link: Link) -> Tensor:
    """(observations, units) of a consumer's input."""
    dim = unit_dim(link.consumer, x)
    return by_unit(x, link.group, dim).movedim(dim, -1).flatten(0, -2)


def _activation(flow: Flow, link: Link) -> int:
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


def _by_producer(flow: Flow, link: Link, x: Tensor) -> Tensor:
    """(units, observations) of what lies somewhere between the units' producer and their consumer."""
    names = {stage.name: stage.module for stage in flow.chain.stages if stage.module is not None}
    producer = names.get(link.group.producer or link.group.consumer)
    dim = x.dim() - 1 if isinstance(producer, nn.Linear) else 1
    return torch.unflatten(x, dim, (link.group.units, -1)).movedim(dim, 0).flatten(1)
