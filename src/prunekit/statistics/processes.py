"""Adding up over the processes of a training on several devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Add up tensors in place over all processes of torch.distributed, if there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def count_processes(holds: bool, device: torch.device) -> tuple[int, int]:
    """(for how many processes something holds, how many there are); all of them must ask.

    A process that stopped alone would leave the others waiting for its sums.
    """
    counted = torch.tensor([float(holds), 1.0], device=device)
    sum_over_processes([counted])
    return int(counted[0]), int(counted[1])
