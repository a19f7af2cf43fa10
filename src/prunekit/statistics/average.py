"""One figure of a network, averaged over examples and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from prunekit.batches import Batch
from prunekit.modes import keeping_modes
from prunekit.statistics.processes import sum_over_processes


@torch.no_grad()
def average(
    model: nn.Module,
    batches: Iterable[Batch],
    figure: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
) -> float:
    """The mean of a figure over all examples of all processes; NaN if there are none.

    Args:
        model: run in evaluation mode; its training flags are put back.
        batches: (inputs, targets), on the network's device.
        figure: (outputs, targets) -> a scalar, the mean over the batch.
        device: where processes exchange their sums.
    """
    sums = torch.zeros(2, dtype=torch.float64)  # of the figure, and of the examples
    with keeping_modes(model):
        model.eval()
        for inputs, targets in batches:
            value = float(figure(model(inputs), targets))
            sums += torch.tensor([value * len(inputs), len(inputs)], dtype=torch.float64)
    sums = sums.to(device)
    sum_over_processes([sums])
    return float(sums[0] / sums[1])
