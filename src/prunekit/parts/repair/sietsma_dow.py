"""Non-contributing units: constant ones, and such as do what another unit does, or its opposite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.parts.repair.units import RemovedUnits, UnitRepair, mean_output, shift_bias
from prunekit.statistics import ConsumerInputMean, Found, UnitCovariance


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
    has c = 1, of the logistic function, here it is the mean of `o_i + o_t`. The unit t is one that stays.
    Exact where one of the three holds. The deviation is the RMS over examples, and over the positions of a
    filter's map. As to constants and zero padding see `fold_mean`; an equal filter is exact with padding too.
    """

    name = "sietsma_dow"
    paper = "Sietsma, Dow 1988, doi 10.1109/ICNN.1988.23864"
    needs = (ConsumerInputMean(), UnitCovariance())

    def update(self, removal: RemovedUnits, statistics: Found) -> None:
        """Hand the outgoing weights on to the partners, the constants to the bias."""
        group, weight = removal.group, removal.weight
        mean = statistics[ConsumerInputMean()][group.name]
        dim = mean.dim() - 1 if isinstance(removal.layer, nn.Linear) else 0
        units = torch.unflatten(mean.movedim(dim, 0), 0, (group.units, group.repeat))  # (units, repeat, ...)
        # a bias holds one number for each input column: what differs along other dimensions is averaged
        by_column = units.flatten(2).mean(2) if units.dim() > 2 else units
        stand = substitutes(
            statistics[UnitCovariance()][group.name], by_column, removal.removed, removal.alive
        )

        sign = stand.sign.view(-1, *[1] * (units.dim() - 1))
        constants = torch.where(sign == 0, units, torch.where(sign < 0, units + units[stand.partner], 0.0))
        outgoing = torch.unflatten(weight, 1, (group.units, group.repeat)).transpose(0, 1)
        handed = outgoing * (stand.sign.view(-1, *[1] * (outgoing.dim() - 1)))
        changed = outgoing.index_add(0, stand.partner, handed)
        lost = weight * removal.columns(removal.removed).view(1, -1, *[1] * (weight.dim() - 2))
        shift_bias(removal.layer, mean_output(removal.layer, lost, constants.flatten(0, 1).movedim(0, dim)))
        removal.layer.weight.copy_(changed.transpose(0, 1).flatten(1, 2))


def substitutes(covariance: Tensor, mean: Tensor, removed: Tensor, alive: Tensor) -> Substitutes:
    """The best of the three for each removed unit; of equal ones the constant, then an equal unit.

    Args:
        covariance: (units, units), the mean over a unit's columns.
        mean: (units, columns of a unit).
        removed: (units,) flags.
        alive: (units,) flags of the units that may stand in.
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
