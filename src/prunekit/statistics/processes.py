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
