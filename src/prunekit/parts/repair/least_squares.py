"""Refitting the next layer on the units that are left."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from prunekit.graph.rows import from_rows, patches, rows_of
from prunekit.limits import LARGE
from prunekit.parts.context import StepContext
from prunekit.parts.repair.units import RemovedUnits, UnitRepair, shift_bias
from prunekit.statistics import ConsumerInputMean, Found, InputCovariance
from prunekit.statistics.consumers import second_moments


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
    works_on = ("units", "groups")
    needs = (ConsumerInputMean(), InputCovariance())
    ridge: float = Field(default=1e-6, ge=0, le=LARGE)

    def update(self, removal: RemovedUnits, statistics: Found) -> None:
        """Fit the rows of each pattern of kept weights together."""
        layer, name = removal.layer, removal.group.name
        covariance = statistics[InputCovariance()][name]
        mean = patches(layer, statistics[ConsumerInputMean()][name].unsqueeze(0))[0].mean(0)
        moments = covariance if layer.bias is not None else second_moments(layer, statistics, name)
        weight, mask = removal.weight.flatten(1), removal.mask.flatten(1)
        # the columns of units that come back at this step hold no values to start from
        usable = removal.columns(removal.alive).repeat_interleave(weight.shape[1] // removal.weight.shape[1])
        changed = fitted(moments, weight, mask, usable, self.ridge)
        if layer.bias is not None:
            shift_bias(layer, (weight - changed) @ mean)
        layer.weight.copy_(changed.view_as(layer.weight))

    def update_consumers(self, context: StepContext) -> None:
        """Fit the layers that read units of coupled groups, each for all the columns that it loses."""
        means, covariances = context.statistics[ConsumerInputMean()], context.statistics[InputCovariance()]
        for name, covariance in covariances.items():
            layer: Any = context.layer(name)
            rows = rows_of(layer.weight.detach(), layer).double()
            on, mean = rows_of(context.masks[name], layer).to(rows.device), means[name]
            free = getattr(layer, "bias", None) is not None
            moments = covariance if free else covariance + mean.unsqueeze(2) * mean.unsqueeze(1)
            everything = torch.ones_like(on[0, 0])
            changed = torch.stack(
                [
                    fitted(each, weight, mask, everything, self.ridge)
                    for each, weight, mask in zip(moments, rows, on, strict=True)
                ]
            )
            if free:
                shift_bias(layer, ((rows - changed) @ mean.unsqueeze(2)).flatten())
            layer.weight.copy_(from_rows(changed, layer))


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
