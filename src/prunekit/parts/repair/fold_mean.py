"""Folding the mean of what is removed into the next bias."""

from __future__ import annotations

from prunekit.parts.repair.units import RemovedUnits, UnitRepair, mean_output, shift_bias
from prunekit.statistics import ConsumerInputMean, Found


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
    needs = (ConsumerInputMean(),)

    def update(self, removal: RemovedUnits, statistics: Found) -> None:
        """Add the mean of the lost part of the pre-activation to the bias."""
        lost = removal.weight.masked_fill(removal.mask, 0)
        shift_bias(
            removal.layer,
            mean_output(removal.layer, lost, statistics[ConsumerInputMean()][removal.group.name]),
        )
