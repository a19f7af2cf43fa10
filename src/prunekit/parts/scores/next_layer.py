"""Scores of units by what the layers that read them make of them: N2PS and ThiNet."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.parts.context import Scores, StepContext
from prunekit.parts.scores.units import UnitScore
from prunekit.statistics import ChannelMagnitude, LayerHessian
from prunekit.statistics.inputs import Consumer, consumers
from prunekit.units import contribution_products, greedy_order


class ConsumerScore(UnitScore):
    """What is computed from the layers that read units, all of them together; each must be in rows."""

    def check(self, context: StepContext) -> None:
        """A layer must read the units of each group.

        Raises:
            InputError: naming a group that no layer reads.
            ModelError: naming a layer that reads units and is neither linear nor a convolution.
        """
        _by_group(context)


def _by_group(context: StepContext) -> dict[str, list[Consumer]]:
    """The layers that read the units of each group."""
    found = list(consumers(context.coupled, context.kept).values())
    by_group = {name: [each for each in found if name in each.units] for name in context.kept}
    for name, each in by_group.items():
        if not each:
            raise InputError(
                f"no layer of its own reads the units of {name!r}, so nothing is known of what it makes of "
                "them: name the group in `ignore`, or use a score of weights"
            )
    return by_group


class N2PS(ConsumerScore):
    """Significance: the mean of sum_j |output w_j|, relative to the mean of the unit's layer.

    After Augasta and Kathirvalavakumar, "A novel pruning algorithm for optimizing feedforward neural network
    of classification problems". **The paper's formula was not available to us**: its abstract says that the
    significance is computed from the sigmoidal activation of the node and all the weights of its outgoing
    connections, and the formula here is our reading of it. For input features the output is their value; for
    the positions of a filter it is the mean magnitude of what is read, and where several layers read a unit,
    the sum goes over the connections to all of them.
    """

    name = "n2ps"
    paper = "Augasta, Kathirvalavakumar 2011, doi 10.1007/s11063-011-9196-7"
    needs = (ChannelMagnitude(consumers=True),)

    def __call__(self, context: StepContext) -> Scores:
        """Each group divided by its mean over the units that are left."""
        found = {}
        for name, each in _by_group(context).items():
            kept = context.kept[name]
            value = torch.zeros(len(kept), dtype=torch.float64, device=kept.device)
            for consumer in each:
                units = consumer.units[name]
                outgoing = torch.unflatten(consumer.rows().abs().sum(1), 1, (units.shape[1], -1)).sum(2)
                magnitude = context.statistics[self.needs[0]][consumer.weight].view_as(units)
                read = units >= 0
                value.index_add_(0, units[read], (magnitude * outgoing)[read])
            found[name] = value / _mean(value, kept)
        return found


def _mean(values: Tensor, kept: Tensor) -> Tensor:
    mean = values[kept].mean()
    return mean if mean > 0 else mean.new_ones(())


class ThiNet(ConsumerScore):
    """The place in the order in which units go, if each time the next layer's output is disturbed least.

    Where several layers read the units, the disturbances of all are added up. Places of different groups
    cannot be compared: use it with the allocation `per_layer`, and with the order `forward` to see what
    earlier removals did.
    """

    name = "thinet"
    paper = "Luo et al. 2017 (ThiNet), arXiv 1707.06342"
    needs = (LayerHessian(centred=False, consumers=True),)

    def __call__(self, context: StepContext) -> Scores:
        """Places from 0; -1 for units that are off."""
        scores = {}
        for name, each in _by_group(context).items():
            kept = context.kept[name]
            products = torch.zeros(len(kept), len(kept), dtype=torch.float64, device=kept.device)
            for consumer in each:
                products += contribution_products(
                    consumer.rows(),
                    context.statistics[self.needs[0]][consumer.weight],
                    consumer.columns(consumer.units[name]),
                    len(kept),
                )
            scores[name] = greedy_order(products, kept).to(kept.device, torch.float64)
        return scores
