"""Throughput of this machine in products, factorisations, ranks and eliminations, to tell times by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.masks import stable_order
from prunekit.obs.row_elimination import eliminate

WIDTH = 768
"""Columns of the layer that is measured on."""

ROWS = 8
"""Its rows that are eliminated."""


@dataclass(frozen=True)
class Rates:
    """Measured throughput, with the threads that torch has; of one thread, by the time of the processor.

    Attributes:
        single: operations a second of a matrix product in single precision.
        double: the same in double precision.
        factorised: operations a second of a Cholesky factorisation in double precision, n^3 / 3 of them.
        ranked: weights a second whose places in their rows are found.
        removal: seconds by which a row's elimination grows with n^2 and with n^3.
    """

    single: float
    double: float
    factorised: float
    ranked: float
    removal: tuple[float, float]

    @classmethod
    def measured(cls, width: int = WIDTH) -> Rates:
        """Those of a small layer of random values, in about a second; the better of two tries each."""
        random = torch.Generator().manual_seed(0)
        rows = torch.randn(2 * width, width, generator=random)
        wide = rows.double()
        matrix = wide.mT @ wide / len(wide) + torch.eye(width, dtype=torch.float64)
        single = 2.0 * len(rows) * width**2 / _seconds(lambda: rows.mT @ rows)
        half = width // 2
        small, large = (_elimination(matrix[:n, :n], wide[:ROWS, :n]) for n in (half, width))
        return cls(
            single=single,
            double=2.0 * len(rows) * width**2 / _seconds(lambda: wide.mT @ wide),
            factorised=width**3 / 3 / _seconds(lambda: torch.linalg.cholesky_ex(matrix)),
            ranked=rows.numel() / _seconds(lambda: stable_order(wide)),
            # a row takes 2 n^3 / 3 operations of products at least, which few columns hide
            removal=growth(half, small, width, large, 2 / 3 / single),
        )

    def elimination(self, rows: int, columns: int) -> float:
        """Seconds of `eliminate` for so many rows."""
        square, cube = self.removal
        return rows * (square * columns**2 + cube * columns**3)


def growth(size: int, seconds: float, larger: int, longer: float, least: float = 0.0) -> tuple[float, float]:
    """(a, b) with seconds = a n^2 + b n^3 at both sizes, none of them negative.

    Args:
        size: a number of columns.
        seconds: what it takes.
        larger: another number of columns.
        longer: what that takes.
        least: what b is at least, which small sizes do not show: the larger size is then met alone.
    """
    cube = (longer / larger**2 - seconds / size**2) / (larger - size)
    cube = min(max(cube, least), longer / larger**3)
    return longer / larger**2 - cube * larger, cube


def _elimination(matrix: Tensor, weights: Tensor) -> float:
    """Seconds for a row."""
    return _seconds(lambda: eliminate(matrix, weights, dtype=torch.float32)) / len(weights)


def _seconds(work: Callable[[], object]) -> float:
    # of one thread, what the processor gives to others does not count
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken = []
    for _ in range(2):
        began = clock()
        work()
        taken.append(clock() - began)
    return max(min(taken), 1e-9)
