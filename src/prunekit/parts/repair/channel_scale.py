"""One factor for each unit that is left, folded into the next layer."""

from __future__ import annotations

from prunekit.parts.repair.units import RemovedUnits, UnitRepair
from prunekit.statistics import ConsumerInputMean, Found, InputCovariance
from prunekit.statistics.consumers import second_moments
from prunekit.units import best_scales, contribution_products


class ChannelScale(UnitRepair):
    """Each unit that is left gets a factor, so that the next layer's output is nearest to what it was.

    The factors are the least squares of ThiNet and are multiplied into the next layer's weights. The repair
    `least_squares` fits every weight instead, with as many times more freedom as a unit has weights.
    """

    name = "channel_scale"
    paper = "Luo et al. 2017 (ThiNet), arXiv 1707.06342"
    needs_bias = False
    needs = (ConsumerInputMean(), InputCovariance())

    def update(self, removal: RemovedUnits, statistics: Found) -> None:
        """Scale the columns of the units that are left."""
        layer, group = removal.layer, removal.group
        moments = second_moments(layer, statistics, group.name)
        products = contribution_products(removal.weight.flatten(1), moments, group.units)
        scales = best_scales(products, removal.alive)
        shape = (1, -1, *[1] * (removal.weight.dim() - 2))
        layer.weight.copy_(removal.weight * removal.columns(scales).view(shape))
