"""Rows of a layer in lots, each with its inverses in one piece of memory of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from prunekit.second_order.damping import factor
from prunekit.second_order.refit import padded_blocks, padded_supports

VECTORS = 128
"""Vectors of a row's length that are reckoned for each row beside its inverse."""


class Lot(NamedTuple):
    """Rows that are worked on together.

    Attributes:
        rows: (b,) their numbers.
        places: (b, k) the columns that take part, then, where `there` is False, any others.
        there: (b, k) booleans.
        inverses: (b, k, `aligned(k)`), of which the first k columns count: the inverse of the matrix on each
            row's columns. The memory is that of the next lot, too.
    """

    rows: Tensor
    places: Tensor
    there: Tensor
    inverses: Tensor


def aligned(width: int) -> int:
    """The next multiple of 16: matrix products run at half the speed on rows that start at odd addresses."""
    return -(-width // 16) * 16


def lots(matrix: Tensor, on: Tensor, dtype: torch.dtype, budget_bytes: int) -> Iterator[Lot]:
    """All rows that have a column, lot by lot.

    Args:
        matrix: (n, n) float64, positive definite on the columns that any row has on.
        on: (rows, n) booleans.
        dtype: of the inverses.
        budget_bytes: memory for a lot; one row always goes.

    Raises:
        DataError: if the matrix is singular.
    """
    if not bool(on.any()):
        return
    space = torch.empty(0, dtype=dtype, device=matrix.device)
    for rows, places, there, inverse in _parts(matrix, on, dtype, budget_bytes):
        count, width = places.shape
        size = count * width * aligned(width)
        if size > len(space):
            space = space.new_empty(size)  # once, for lots of about the same size: fresh memory is slow
        inverses = space[:size].view(count, width, aligned(width))
        inverses[:, :, :width] = inverse
        yield Lot(rows, places, there, inverses)


def _parts(
    matrix: Tensor, on: Tensor, dtype: torch.dtype, budget_bytes: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(rows, places, there, inverse): the inverse is one for all rows of the lot, or each has its own."""
    if bool((on == on[:1]).all()):
        columns = on[0].nonzero().flatten()
        inverse = torch.cholesky_inverse(factor(matrix[columns][:, columns])).to(dtype)
        bytes_per_row = dtype.itemsize * aligned(len(columns)) * (len(columns) + VECTORS)
        most = max(1, budget_bytes // bytes_per_row)
        number = -(-len(on) // most)
        for rows in torch.arange(len(on), device=on.device).tensor_split(number):
            places = columns.expand(len(rows), -1)
            yield rows, places, torch.ones_like(places, dtype=torch.bool), inverse
        return
    # float64 blocks, their factors and inverses come with the inverses in `dtype`
    for rows, places, there in padded_supports(on, budget_bytes // 4):
        yield rows, places, there, torch.cholesky_inverse(factor(padded_blocks(matrix, places, there)))
