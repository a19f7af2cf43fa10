"""Means, variances and correlations of columns that come in batches."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Running first and second moments in float64, about the running mean.

    Batches are merged by the update of Chan, Golub and LeVeque (1979), so that large means cost no digits.

    Attributes:
        count: rows so far.
        mean: (columns,) float64.
    """

    def __init__(self, *, pairs: bool):
        """With `pairs`, of each pair of columns; else of each column alone."""
        self._pairs = pairs
        self.count = 0
        self.mean = torch.empty(0)
        self._second = torch.empty(0)  # sums of products of deviations: (columns, columns) or (columns,)

    def add(self, rows: Tensor) -> None:
        """Take (n, columns) more rows."""
        rows = rows.double()
        mean = rows.mean(0)
        rows = rows - mean
        second = rows.T @ rows if self._pairs else rows.square().sum(0)
        if self.count == 0:
            self.count, self.mean, self._second = len(rows), mean, second
            return
        step = mean - self.mean
        total = self.count + len(rows)
        between = torch.outer(step, step) if self._pairs else step.square()
        self._second = self._second + second + between * (self.count * len(rows) / total)
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """(columns,) divided by the number of rows; exactly 0 for columns that differ by rounding only."""
        squares = self._second.diagonal() if self._pairs else self._second
        variance = squares / self.count
        return variance.masked_fill(variance <= (1e-12 * self.mean).square(), 0.0)

    @property
    def correlation(self) -> Tensor:
        """(columns, columns) Pearson's r in [-1, 1], 0 for constant columns; (0, 0) without pairs."""
        if not self._pairs:
            return self.mean.new_empty(0, 0)
        deviation = self.variance.sqrt()
        alive = deviation > 0
        scale = torch.where(alive, deviation, 1.0)
        r = (self._second / self.count / scale.outer(scale)).clamp(-1, 1)
        r = r * alive.outer(alive)
        return r.diagonal_scatter(alive.to(r.dtype))
