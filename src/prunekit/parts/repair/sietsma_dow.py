"""Non-contributing units: constant ones, and such as do what another unit does, or its opposite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.parts.repair.units import RemovedUnits, UnitRepair, Update
from prunekit.statistics import ChannelCovariance, ChannelMean, Found, LayerInputMean


@dataclass(frozen=True)
class Substitutes:
    """What takes the place of each removed unit i.

    Attributes:
        sign: (units,) float64: 0 for a constant, 1 for another unit's output o_t, -1 for c - o_t; 0 for
            units that are not removed.
        partner: (units,) int64: t, or the unit itself where a constant stands in.
        deviation: (units,) float64: the root mean square of what is missed; 0 where none is removed.
    """

    sign: Tensor
    partner: Tensor
    deviation: Tensor


class SietsmaDow(UnitRepair):
    """A constant, an equal or an opposite unit stands in for each removed one, whichever deviates least.

    Constant: its mean goes into the next bias. Equal (`o_i = o_t`): its outgoing weights are added to those
    of unit t. Opposite (`o_i = c - o_t`): they are subtracted, and c times them goes into the bias; the paper
    has c = 1, of the logistic function, here it is the mean of `o_i + o_t`. The unit t is one that stays and
    that the same layer reads, with as many inputs; where several layers read a unit, each has the one that
    deviates least from what it reads. Exact where one of the three holds. The deviation is the RMS over
    examples, and over the positions of a filter's map. As to constants and zero padding see `fold_mean`; an
    equal filter is exact with padding too.
    """

    name = "sietsma_dow"
    paper = "Sietsma, Dow 1988, doi 10.1109/ICNN.1988.23864"
    needs = (LayerInputMean(consumers=True), ChannelMean(consumers=True), ChannelCovariance(consumers=True))

    def update(self, removal: RemovedUnits, statistics: Found) -> Update:
        """Hand the outgoing weights on to the partners, the constants to the bias."""
        mean, channel_mean, covariance = (statistics[each][removal.consumer.weight] for each in self.needs)
        groups, inputs = removal.units.shape

        def by_input(columns: Tensor) -> Tensor:
            """(inputs of all groups, ..., kernel) of (groups, ..., columns)."""
            return torch.unflatten(columns, -1, (inputs, -1)).movedim(-2, 1).flatten(0, 1)

        outgoing, means = by_input(removal.rows), by_input(mean)
        changed, constants = outgoing.clone(), torch.zeros_like(means)
        for unit, at in units_alike(removal.units.flatten(), len(removal.alive)):
            # a group's outputs read its own inputs only
            together = (at.unsqueeze(1) // inputs == at // inputs).all(2)
            stand = substitutes(
                unit_covariance(covariance, at),
                channel_mean[0][at],
                removal.removed[unit],
                removal.alive[unit] & together,
            )
            partner = at[stand.partner]
            handed = outgoing[at] * stand.sign.view(-1, 1, 1, 1)
            changed.index_add_(0, partner.flatten(), handed.flatten(0, 1))
            sign = stand.sign.view(-1, 1, 1)
            lost = torch.where(sign == 0, means[at], torch.where(sign < 0, means[at] + means[partner], 0.0))
            constants[at] = lost * removal.removed[unit].view(-1, 1, 1)
        shift = (outgoing * constants.unsqueeze(1)).sum(2)
        rows = torch.unflatten(changed, 0, (groups, inputs)).movedim(1, -2).flatten(-2)
        return rows, torch.unflatten(shift, 0, (groups, inputs)).sum(1)


def unit_covariance(covariance: Tensor, at: Tensor) -> Tensor:
    """(units, units): the mean over a unit's inputs of their covariances with those of another.

    Args:
        covariance: (1, inputs, inputs).
        at: (units, inputs of a unit) which these are.
    """
    return covariance[0][at.T.unsqueeze(2), at.T.unsqueeze(1)].mean(0)


def units_alike(unit_of: Tensor, units: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The units with as many inputs, (n,), and which these are (n, inputs of a unit), for each such number.

    Args:
        unit_of: (inputs,) the unit that each input belongs to; -1 for none.
        units: how many there are; those without inputs are left out.
    """
    sizes = torch.bincount(unit_of[unit_of >= 0], minlength=units)
    order = unit_of.argsort(stable=True)[int((unit_of < 0).sum()) :]
    for size in sorted(set(sizes.tolist())):
        if size:
            chosen = (sizes == size).nonzero().flatten()
            yield chosen, order[sizes[unit_of[order]] == size].view(len(chosen), size)


def substitutes(covariance: Tensor, mean: Tensor, removed: Tensor, alive: Tensor) -> Substitutes:
    """The best of the three for each removed unit; of equal ones the constant, then an equal unit.

    Args:
        covariance: (units, units), see `unit_covariance`.
        mean: (units, inputs of a unit).
        removed: (units,) flags.
        alive: (units,) flags of the units that may stand in, or (units, units) of those that may for each.
    """
    units = len(covariance)
    variance = covariance.diagonal()
    both = variance.unsqueeze(1) + variance
    apart = (mean.unsqueeze(1) - mean).square().mean(2)
    allowed = alive.expand(units, units)
    equal = (both - 2 * covariance + apart).masked_fill(~allowed, torch.inf)
    opposite = (both + 2 * covariance).masked_fill(~allowed, torch.inf)
    choices = torch.cat([variance.unsqueeze(1), equal, opposite], 1).clamp(min=0)
    least, choice = choices.min(1)
    constant = ~removed | (choice == 0)
    own = torch.arange(units, device=choice.device)
    partner = torch.where(constant, own, (choice - 1) % units)
    sign = torch.where(choice > units, -1.0, 1.0).double().masked_fill(constant, 0.0)
    return Substitutes(sign, partner, least.sqrt().masked_fill(~removed, 0.0))
