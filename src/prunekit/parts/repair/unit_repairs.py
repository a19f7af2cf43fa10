"""Repairs of the layers that read removed units: by a bias, factors, new weights or units that act alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prunekit.errors import ModelError
from prunekit.graph.rows import from_rows, rows_of
from prunekit.masks import Masks
from prunekit.parts.base import Level
from prunekit.parts.context import StepContext
from prunekit.parts.repair.weight_repairs import Repair
from prunekit.settings import LARGE
from prunekit.statistics import ChannelCovariance, ChannelMean, Found, LayerHessian, LayerInputMean
from prunekit.statistics.inputs import Consumer, consumers
from prunekit.statistics.moments import contribution_products


@dataclass(frozen=True)
class RemovedUnits:
    """The units that one layer is about to lose, of all groups whose units it reads.

    Where groups cross in it, as heads and their widths do, what counts as a unit is a crossing of theirs.

    Attributes:
        consumer: the layer.
        rows: (groups, rows, columns) float64, its weights from before the step.
        kept: of the same shape, the weights that stay.
        units: (groups, inputs) int64, the unit that an input belongs to; -1 for none.
        removed: (units,) flags: on before this step, off after it.
        alive: (units,) flags: on before this step and after it.
    """

    consumer: Consumer
    rows: Tensor
    kept: Tensor
    units: Tensor
    removed: Tensor
    alive: Tensor


Update = tuple[Tensor, Tensor | None]
"""A layer's new weights (groups, rows, columns), and what its bias is raised by (groups, rows), if at all."""


class UnitRepair(Repair):
    """A repair of the layers that read removed units.

    Every layer is repaired for what its inputs were before the step, also where several layers lose units
    in one step: use the order `forward` or small steps for repairs that see the repaired inputs.
    """

    works_on: ClassVar[tuple[Level, ...]] = ("units",)
    needs_bias: ClassVar[bool] = True

    def check(self, context: StepContext) -> None:
        """The layers that read the units must have a bias, if one is needed to hold constants.

        Raises:
            ModelError: naming the first layer without, or one that is neither linear nor a convolution.
        """
        for consumer in _consumers(context).values():
            if self.needs_bias and getattr(consumer.layer, "bias", None) is None:
                name = next(iter(consumer.units))
                raise ModelError(
                    f"the repair {self.name!r} puts what the units of {name!r} lose into the bias of "
                    f"{consumer.name!r}, which has none: name {name!r} in `ignore`, or use 'least_squares'"
                )

    @torch.no_grad()
    def __call__(self, context: StepContext) -> None:
        """Repair each layer that loses units at this step; what is removed is exactly zero afterwards."""
        for name, consumer in _consumers(context).items():
            removal = _removal(context, name, consumer)
            if bool(removal.removed.any()):
                layer: Any = consumer.layer
                rows, shift = self.update(removal, context.statistics)
                if shift is not None:
                    layer.bias.copy_(layer.bias.double() + shift.flatten())
                layer.weight.copy_(from_rows(rows, layer))
        context.masks.apply(context.model)

    @abstractmethod
    def update(self, removal: RemovedUnits, statistics: Found) -> Update:
        """The repaired layer; masked weights are set to zero by the caller."""


def _consumers(context: StepContext) -> Mapping[str, Consumer]:
    return consumers(context.coupled, context.kept)


def _removal(context: StepContext, name: str, consumer: Consumer) -> RemovedUnits:
    rows = consumer.rows()
    read = torch.stack(list(consumer.units.values()))
    # heads and their widths cross: an input is then what one unit of each have in common
    crossings, units = torch.unique(read.flatten(1), dim=1, return_inverse=True)

    def on(kept: Masks) -> Tensor:
        """Which crossings are on: all of their units are; -1, no unit, is the flag behind the last."""
        flags = [
            torch.cat([kept[group], kept[group].new_ones(1)]).to(rows.device) for group in consumer.units
        ]
        return torch.stack([each[unit] for each, unit in zip(flags, crossings, strict=True)]).all(0)

    before, after = on(context.kept), on(context.kept_after)
    if bool((crossings[:, 0] < 0).all()):  # inputs of no unit come first
        units, before, after = units - 1, before[1:], after[1:]
    kept = rows_of(context.masks[name].to(rows.device), consumer.layer)
    return RemovedUnits(consumer, rows, kept, units.view_as(read[0]), before & ~after, before & after)


class FoldMean(UnitRepair):
    """The mean of what removed units sent to the next layer goes into that layer's bias.

    Exact for units whose output is constant. For convolutions the mean is also over positions; without
    padding that is the unit's mean times the sum over the kernel. Near a border that is padded with zeros a
    constant unit sends less than elsewhere, which one bias cannot repeat: the best constant is taken.

    The squared deviation of the layer never grows on the calibration data. Accuracy can fall all the same
    where much goes from several layers at once: the constants stay whole while the signal fades.
    """

    name = "fold_mean"
    paper = "constant units of Sietsma, Dow 1988"
    needs = (LayerInputMean(consumers=True),)

    def update(self, removal: RemovedUnits, statistics: Found) -> Update:
        """Add the mean of the lost part of the pre-activation to the bias."""
        mean = statistics[LayerInputMean(consumers=True)][removal.consumer.weight]
        return removal.rows, removal.rows.masked_fill(removal.kept, 0) @ mean.unsqueeze(2)


class ChannelScale(UnitRepair):
    """Each unit that is left gets a factor, so that the next layer's output is nearest to what it was.

    The factors are the least squares of ThiNet and are multiplied into the next layer's weights; where
    several layers read a unit, it has a factor in each. The repair `least_squares` fits every weight instead,
    with as many times more freedom as a unit has weights.
    """

    name = "channel_scale"
    paper = "Luo et al. 2017 (ThiNet), arXiv 1707.06342"
    needs_bias = False
    needs = (LayerHessian(centred=False, consumers=True),)

    def update(self, removal: RemovedUnits, statistics: Found) -> Update:
        """Scale the columns of the units that are left."""
        moments = statistics[LayerHessian(centred=False, consumers=True)][removal.consumer.weight]
        columns = removal.consumer.columns(removal.units)
        products = contribution_products(removal.rows, moments, columns, len(removal.alive))
        scales = F.pad(best_scales(products, removal.alive), (0, 1), value=1.0)  # -1: of no unit
        return removal.rows * scales[columns].unsqueeze(1), None


def best_scales(products: Tensor, kept: Tensor) -> Tensor:
    """The factor for each kept unit with which the next layer's output is nearest to what it was.

    Least squares on the contributions, `G_KK s = G_K. 1`; the smallest change where the data leave a choice.

    Args:
        products: (units, units), see `contribution_products`.
        kept: (units,) flags.

    Returns:
        (units,) factors, 1 for units that are not kept.
    """
    places = kept.nonzero().flatten()
    scales = torch.ones(len(products), dtype=products.dtype, device=products.device)
    if not len(places):
        return scales
    square = products[places][:, places]
    # solved for the change from 1, so that units that never act keep their factor
    missing = products[places].sum(1) - square.sum(1)
    limit = len(places) * torch.finfo(products.dtype).eps
    change = torch.linalg.lstsq(
        square.cpu(), missing.cpu().unsqueeze(1), rcond=limit, driver="gelsd"
    ).solution
    scales[places] += change.flatten().to(scales.device)
    return scales


class LeastSquares(UnitRepair):
    """The next layer's weights and bias are fitted to give what it gave before, from the units that are left.

    The squared deviation of its pre-activation on the calibration data is as small as it can be: with the
    inputs' covariance C, kept columns K and lost weights W_L, the kept weights change by
    `W_L C_LK (C_KK + ridge)^-1`, which is solved in float64. ThiNet scales whole channels in this way; here
    every weight is fitted. A layer without a bias is fitted without one. A convolution is fitted as a linear
    layer on its patches; its covariance takes (inputs x kernel)^2 numbers of memory.

    Attributes:
        ridge: a penalty on the change, as a fraction of each column's variance, which keeps directions that
            the calibration data hardly show as they were; 0 for none, and the smallest change where the
            data leave a choice.
    """

    name = "least_squares"
    paper = "the reconstruction of ThiNet, Luo et al. 2017, arXiv 1707.06342"
    needs_bias = False
    needs = (LayerInputMean(consumers=True), LayerHessian(consumers=True))
    ridge: float = Field(default=1e-6, ge=0, le=LARGE)

    def update(self, removal: RemovedUnits, statistics: Found) -> Update:
        """Fit the rows of each pattern of kept weights together."""
        mean, moments = (statistics[each][removal.consumer.weight] for each in self.needs)
        # the columns of units that come back at this step hold no values to start from
        alive = F.pad(removal.alive, (0, 1), value=True)
        usable = alive[removal.consumer.columns(removal.units)]
        groups = zip(moments, removal.rows, removal.kept, usable, strict=True)
        changed = torch.stack([fitted(*group, self.ridge) for group in groups])
        has_bias = getattr(removal.consumer.layer, "bias", None) is not None
        return changed, (removal.rows - changed) @ mean.unsqueeze(2) if has_bias else None


def fitted(moments: Tensor, weight: Tensor, mask: Tensor, usable: Tensor, ridge: float) -> Tensor:
    """The weights that are left, each row fitted to give what it gave; the rows of one mask together.

    Args:
        moments: (columns, columns) float64, second moments of the inputs.
        weight: (rows, columns) float64, before anything was removed.
        mask: of the same shape, True = kept.
        usable: (columns,) flags of those that may make up for others.
        ridge: see `LeastSquares`.
    """
    changed = weight.masked_fill(~mask, 0)
    patterns, which = torch.unique(mask, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows = which == number
        lost = weight[rows].masked_fill(pattern, 0)
        if bool(pattern.any()) and bool((lost != 0).any()):
            changed[rows] += refit(moments, lost, pattern & usable, ridge)
    return changed


def refit(moments: Tensor, lost: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """The change D of the kept columns that makes E|(lost - D) x|^2 smallest, 0 in the other columns.

    Args:
        moments: (columns, columns) float64, second moments E[x x'] of the inputs x.
        lost: (rows, columns) weights that are taken away.
        kept: (columns,) flags.
        ridge: see `LeastSquares`.
    """
    places = kept.nonzero().flatten()
    change = torch.zeros_like(lost)
    if not len(places):
        return change
    # to unit variances: the ridge is then relative, and the solution loses fewer digits
    scale = moments.diagonal()[places].sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    square = moments[places][:, places] / scale.outer(scale)
    square.diagonal().add_(ridge)
    right = (moments[places] @ lost.T) / scale.unsqueeze(1)
    change[:, places] = (_solve(square, right, trusted=ridge > 0) / scale.unsqueeze(1)).T
    return change


def _solve(square: Tensor, right: Tensor, *, trusted: bool) -> Tensor:
    """By Cholesky, if the ridge made the matrix positive; the smallest solution if it may be singular."""
    if trusted:
        factor, failed = torch.linalg.cholesky_ex(square)
        if not bool(failed):
            return torch.cholesky_solve(right, factor)
    # on the CPU, where there is a driver for matrices without full rank
    limit = len(square) * torch.finfo(square.dtype).eps
    found = torch.linalg.lstsq(square.cpu(), right.cpu(), rcond=limit, driver="gelsd").solution
    return found.to(right.device)


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
