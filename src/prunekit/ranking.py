"""Choosing the lowest of many numbers, with the exact count and ties broken by position."""

import numpy as np
import torch
from torch import Tensor


def lowest(values: Tensor, count: int) -> Tensor:
    """A boolean tensor of the shape of `values` that marks exactly `count` of the lowest of them.

    Among equal values the one with the lower position (in row-major order) goes first, so the choice is the
    same on every machine. The threshold is found in linear time and without the size limit of
    `torch.quantile`.

    Args:
        values: any shape; minus infinity is allowed, NaN is not.
        count: 0 <= count <= values.numel().
    """
    flat = values.flatten()
    if not 0 <= count <= flat.numel():
        raise ValueError(f"cannot choose {count} of {flat.numel()} values")
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = _kth_lowest(flat, count)
    chosen = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.count_nonzero())]] = True
    return chosen.view(values.shape)


def _kth_lowest(flat: Tensor, count: int) -> Tensor:
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        # a partition without the positions, which `kthvalue` carries along: three times as fast
        return flat.new_tensor(np.partition(flat.detach().numpy(), count - 1)[count - 1])
    return flat.kthvalue(count).values


def lowest_per_row(values: Tensor, count: int) -> Tensor:
    """For a matrix, marks exactly `count` of the lowest values of every row, ties by position."""
    order = values.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True)
