"""Correlations between two sets of columns that go by together in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.statistics.collect import sum_over_processes
from prunekit.statistics.moments import Moments

_ROUNDING = 8
"""A deviation of so many roundings of the mean is none."""


class CrossMoments:
    """Running moments of the columns of x and y, and the products of their deviations.

    What comes in is multiplied in its own precision, at least float32, about means so far, and added up in
    float64; the products are moved to the new means exactly, as in `Moments`, whose remarks hold here, too.

    Attributes:
        x: moments of (blocks, rows, columns).
        y: moments of (blocks, rows, others).
    """

    def __init__(self, blocks: int, columns: int, others: int, *, device: torch.device | None = None) -> None:
        """Nothing seen yet, of `columns` numbers x and `others` numbers y in each row of each block."""
        self.x = Moments(blocks, columns, pairs=False, device=device)
        self.y = Moments(blocks, others, pairs=False, device=device)
        self._products = torch.zeros(blocks, others, columns, dtype=torch.float64, device=device)
        self._rounding = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take (blocks, rows, columns) and (blocks, rows, others) more."""
        if not x.shape[1]:
            return
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        self._rounding = max(self._rounding, _ROUNDING * torch.finfo(dtype).eps)
        x, y = x.to(dtype), y.to(dtype)
        count, x_before, y_before = self.x.count, self.x.mean, self.y.mean
        self.x.add(x)
        self.y.add(y)
        # any point will do to take products about, if it is accounted for: this one costs no digits
        x_point, y_point = self.x.mean.to(dtype), self.y.mean.to(dtype)
        self._products += (y - y_point.unsqueeze(1)).mT @ (x - x_point.unsqueeze(1))
        self._move(count, x_before - x_point, y_before - y_point)
        self._move(-self.x.count, self.x.mean - x_point, self.y.mean - y_point)

    def merge(self, other: CrossMoments) -> None:
        """Take what another one has seen of the same columns."""
        parts = [(one.x.count, one.x.mean, one.y.mean) for one in (self, other)]
        self._rounding = max(self._rounding, other._rounding)
        self.x.merge(other.x)
        self.y.merge(other.y)
        self._products += other._products
        for count, x_mean, y_mean in parts:
            self._move(count, x_mean - self.x.mean, y_mean - self.y.mean)

    def reduce(self) -> None:
        """Merge with those of all processes; one that saw nothing adds nothing."""
        count, x_mean, y_mean = self.x.count, self.x.mean, self.y.mean
        self.x.reduce()
        self.y.reduce()
        self._move(count, x_mean - self.x.mean, y_mean - self.y.mean)
        sum_over_processes([self._products])

    @property
    def finite(self) -> tuple[bool, bool]:
        """Whether x, and y, are finite and not too large to be squared."""
        return tuple(bool((one.mean + one.variance).isfinite().all()) for one in (self.x, self.y))  # type: ignore[return-value]

    @property
    def correlations(self) -> Tensor:
        """(blocks, others, columns) Pearson correlations in [-1, 1]; 0 where a column is constant."""
        scale = self._deviations(self.y).unsqueeze(2) * self._deviations(self.x).unsqueeze(1)
        live = scale > 0
        found = self._products / (scale * max(self.x.count, 1)).masked_fill(~live, 1)
        return found.clamp(-1, 1).masked_fill_(~live, 0)

    def _deviations(self, moments: Moments) -> Tensor:
        """(blocks, columns): standard deviations; 0 for what is rounding only."""
        found = moments.variance.sqrt()
        return found.masked_fill(found <= self._rounding * moments.mean.abs(), 0)

    def _move(self, count: int, dx: Tensor, dy: Tensor) -> None:
        """Account for so many rows whose means lie (dx, dy) from the point of their products."""
        self._products.baddbmm_(dy.double().unsqueeze(2), dx.double().unsqueeze(1), alpha=count)
