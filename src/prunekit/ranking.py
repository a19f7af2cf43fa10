"""Choosing the lowest of many numbers, with the exact count and ties broken by position."""

import torch
from torch import Tensor


def lowest(values: Tensor, count: int) -> Tensor:
    """A boolean tensor of the shape of `values` that marks exactly `count` of the lowest of them.

    Among equal values the one with the lower position (in row-major order) goes first, so the choice is the
    same on every machine. `kthvalue` finds the threshold in linear time and without the size limit of
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
    threshold = flat.kthvalue(count).values
    chosen = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.view(values.shape)


def lowest_per_row(values: Tensor, count: int) -> Tensor:
    """For a matrix, marks exactly `count` of the lowest values of every row, ties by position."""
    order = values.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True)
