"""Running first and second moments of columns of one set or two, and what units add to an output by them."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.distributed import processes, rank, sum_over_processes, sum_to_process

_NARROW = 256
"""Columns up to which a product of a matrix with itself is taken whole, not its upper half alone."""

_PROBES = 16
"""Rows by which most columns show that they are not constant."""


class Moments:
    """Running means, and squares or products of deviations, of the columns of (blocks, rows, columns).

    Each block is taken about its own mean. What comes in is multiplied in its own precision, at least
    float32, about the mean of the batch it comes in, and added up in float64; batches, shards and processes
    are merged by the update of Chan, Golub and LeVeque (1979). Large means therefore cost no digits, and a
    column that is constant has deviations of exactly zero.

    Attributes:
        count: rows so far.
        mean: (blocks, columns) float64.
    """

    def __init__(
        self,
        blocks: int,
        columns: int,
        *,
        pairs: bool,
        device: torch.device | None = None,
    ) -> None:
        """Nothing seen yet.

        Args:
            blocks: how many populations are looked at side by side.
            columns: numbers in a row.
            pairs: products of all pairs of columns; else the squares alone.
            device: where the sums are kept.
        """
        self.count = 0
        self.mean = torch.zeros(blocks, columns, dtype=torch.float64, device=device)
        self._pairs = pairs
        shape = (blocks, columns, *([columns] if pairs else []))
        # with pairs, what lies on and above the diagonal counts
        self._second = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, block: Tensor) -> None:
        """Take (blocks, rows, columns) more."""
        rows = block.shape[1]
        if not rows:
            return
        block = block.to(torch.promote_types(block.dtype, torch.float32))
        shift = _centre(block)
        apart = block - shift.unsqueeze(1)
        rest = apart.sum(1).double()
        if self._pairs:
            add_product(self._second, apart)
        else:
            self._second += apart.square().sum(1)
        self._correct(rest, -1 / rows)
        self.join(rows, shift.double() + rest / rows)

    def join(self, rows: int, mean: Tensor) -> None:
        """Take that many rows of this mean (blocks, columns), whose deviations from it are taken already."""
        total = self.count + rows
        step = mean - self.mean
        self._correct(step, self.count * rows / total)
        self.mean = self.mean + step * (rows / total)
        self.count = total

    def merge(self, other: Moments) -> None:
        """Take what another one has seen, of the same columns and with the same settings."""
        if other.count:
            self._second += other._second
            self.join(other.count, other.mean)

    def reduce(self, owner: int | None = None) -> None:
        """Merge with those of all processes; one that saw nothing adds nothing.

        Args:
            owner: the process that alone gets the products of pairs; the others are left with the squares.
        """
        count = torch.tensor(float(self.count), dtype=torch.float64, device=self.mean.device)
        total, sums = count.clone(), self.mean * count
        sum_over_processes([total, sums])
        mean = sums / total.clamp(min=1)
        self._correct(self.mean - mean, self.count)
        self.count, self.mean = int(total), mean
        if owner is None or not self._pairs or processes() == 1:
            sum_over_processes([self._second])
            return
        squares = self._second.diagonal(dim1=1, dim2=2).clone()
        sum_to_process(self._second, owner)
        sum_over_processes([squares])
        if rank() != owner:
            self._pairs, self._second = False, squares

    @property
    def variance(self) -> Tensor:
        """(blocks, columns): mean squares of deviations."""
        squares = self._second.diagonal(dim1=1, dim2=2) if self._pairs else self._second
        return squares.clamp(min=0) / self._rows

    @property
    def covariance(self) -> Tensor:
        """(blocks, columns, columns): mean products of deviations; with `pairs` only."""
        found = mirrored(self._second).div_(self._rows)
        found.diagonal(dim1=1, dim2=2).clamp_(min=0)
        return found

    @property
    def correlation(self) -> Tensor:
        """(blocks, columns, columns): Pearson's r, 0 where a column is constant; with `pairs` only."""
        covariance = self.covariance
        variance = covariance.diagonal(dim1=1, dim2=2)
        alive = variance > 0
        scale = torch.where(alive, variance, 1.0).sqrt()
        both = alive.unsqueeze(2) & alive.unsqueeze(1)
        r = (covariance / (scale.unsqueeze(2) * scale.unsqueeze(1))).clamp(-1, 1) * both
        return r.diagonal_scatter(alive.to(r.dtype), dim1=1, dim2=2)

    @property
    def _rows(self) -> int:
        return max(self.count, 1)

    def _correct(self, step: Tensor, times: float) -> None:
        """Add `times` the products of (blocks, columns) to the sums."""
        step = step.unsqueeze(1)
        if self._pairs:
            self._second.baddbmm_(step.mT, step, alpha=times)
        else:
            self._second.add_(step.square().sum(1), alpha=times)


def _centre(block: Tensor) -> Tensor:
    """(blocks, columns) near the means; exactly the number where all of a column are equal."""
    centre = block.mean(1)
    some = block[:, :: max(1, block.shape[1] // _PROBES)]
    columns = (some == some[:, :1]).all(1).any(0).nonzero().flatten()
    if len(columns):  # a mean of equal numbers may be rounded
        chosen = block[:, :, columns]
        first = chosen[:, 0]
        equal = (chosen == first.unsqueeze(1)).all(1)
        centre[:, columns] = torch.where(equal, first, centre[:, columns])
    return centre


def add_product(total: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to `total`, on and above the diagonal at least; the halves below cost nothing."""
    columns = rows.shape[-1]
    if columns <= _NARROW:
        total += rows.mT @ rows
        return
    half = columns // 2
    one, other = rows[..., :half], rows[..., half:]
    add_product(total[:, :half, :half], one)
    add_product(total[:, half:, half:], other)
    total[:, :half, half:] += one.mT @ other


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrices (..., n, n) that agree with these on and above the diagonal."""
    found = upper.triu()
    return found.add_(upper.triu(1).mT)


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


def contribution_products(weight: Tensor, moments: Tensor, unit_of: Tensor, units: int) -> Tensor:
    """What pairs of units add to the square of a layer's output.

    The output is a sum of one contribution per unit that the layer reads, `c_i = W_i x_i`. Luo et al. 2017
    (arXiv 1707.06342) sample outputs and hold their contributions in a matrix X, of which only `X^T X` is
    needed. That product is a sum over the second moments of the layer's inputs, so every output at every
    position counts here, and nothing has to be sampled.

    Args:
        weight: (groups, outputs, columns) the layer's weights, see `rows_of`.
        moments: (groups, columns, columns) second moments E[x x'] of its inputs.
        unit_of: (groups, columns) int64, the unit that each column belongs to; -1 for none.
        units: how many there are.

    Returns:
        (units, units): `G_ij = E[c_i . c_j]`, summed over the outputs.
    """
    found = weight.new_zeros(units, units)
    for rows, second, unit in zip(weight, moments, unit_of, strict=True):
        at = (unit >= 0).nonzero().flatten()
        chosen = rows[:, at]
        blocks = (chosen.T @ chosen) * second[at][:, at]
        half = weight.new_zeros(units, len(at)).index_add_(0, unit[at], blocks)
        found.index_add_(1, unit[at], half)
    return found
