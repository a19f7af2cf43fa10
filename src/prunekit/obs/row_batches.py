"""Batches of rows of a layer, each with its inverses in one piece of memory of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from prunekit.obs.inverse_hessian import factor
from prunekit.obs.refit import padded_blocks, padded_supports

VECTORS = 128
"""Vectors of a row's length that are reckoned for each row beside its inverse."""

_DOWNDATED = 8
"""Rows whose columns that are off are taken out together."""


class RowBatch(NamedTuple):
    """Rows that are worked on together.

    Attributes:
        rows: (b,) their numbers.
        places: (b, k) columns, all different in a row.
        valid: (b, k) booleans: which of them take part.
        inverses: (b, k, `aligned(k)`), of which the first k columns count: the inverse of the matrix on each
            row's columns that take part. The memory is that of the next batch, too.
    """

    rows: Tensor
    places: Tensor
    valid: Tensor
    inverses: Tensor


def aligned(width: int) -> int:
    """The next multiple of 16: matrix products run at half the speed on rows that start at odd addresses."""
    return -(-width // 16) * 16


def row_batches(matrix: Tensor, on: Tensor, dtype: torch.dtype, budget_bytes: int) -> Iterator[RowBatch]:
    """All rows that have a column, batch by batch.

    Args:
        matrix: (n, n) float64, positive definite on the columns that any row has on.
        on: (rows, n) booleans.
        dtype: of the inverses.
        budget_bytes: memory for a batch; one row always goes.

    Raises:
        DataError: if the matrix is singular.
    """
    columns = on.any(0).nonzero().flatten()
    matrix, on = matrix[columns][:, columns], on[:, columns]
    whole = (~on).sum(1) * 3 <= len(columns)
    space = torch.empty(0, dtype=dtype, device=matrix.device)
    for rows, places, valid, inverses in chain(
        _most_columns(matrix, on, whole, dtype, budget_bytes),
        _few_columns(matrix, on & ~whole[:, None], budget_bytes),
    ):
        count, width = places.shape
        size = count * width * aligned(width)
        if size > len(space):
            space = space.new_empty(size)  # once, for batches of about the same size: fresh memory is slow
        batch = RowBatch(rows, columns[places], valid, space[:size].view(count, width, aligned(width)))
        inverses(batch.inverses[:, :, :width])
        yield batch


_Part = tuple[Tensor, Tensor, Tensor, Callable[[Tensor], None]]
"""(rows, places, valid, what writes the inverses)."""


def _most_columns(
    matrix: Tensor, on: Tensor, whole: Tensor, dtype: torch.dtype, budget_bytes: int
) -> Iterator[_Part]:
    """Rows with most of the columns: the inverse for all columns is downdated for those that are off."""
    rows = whole.nonzero().flatten()
    if not on.shape[1] or not len(rows):
        return
    inverse = torch.cholesky_inverse(factor(matrix))
    width = len(inverse)
    bytes_per_row = dtype.itemsize * aligned(width) * (width + VECTORS)
    number = -(-len(rows) // max(1, budget_bytes // bytes_per_row))
    for some in rows[on[rows].sum(1).argsort(stable=True)].tensor_split(number):

        def write(inverses: Tensor, off: Tensor = ~on[some]) -> None:
            inverses[:] = inverse
            for places, part in zip(
                torch.split(off, _DOWNDATED), torch.split(inverses, _DOWNDATED), strict=True
            ):
                _take_out(part, inverse, places)

        yield some, torch.arange(width, device=on.device).expand(len(some), -1), on[some], write


def _take_out(inverses: Tensor, inverse: Tensor, off: Tensor) -> None:
    """Downdate (b, n, n), each the same inverse, for the places that are off in (b, n)."""
    for rows, places, valid in padded_supports(off, budget_bytes=off.numel() * len(inverse) * 8):
        across = inverse[places] * valid[:, :, None]
        half = torch.linalg.solve_triangular(
            factor(padded_blocks(inverse, places, valid)), across, upper=False
        )
        half = half.to(inverses.dtype)
        inverses[rows] = inverses[rows].baddbmm_(half.mT, half, alpha=-1)


def _few_columns(matrix: Tensor, on: Tensor, budget_bytes: int) -> Iterator[_Part]:
    """Rows that have lost many: the matrix on each row's columns is inverted."""
    # float64 blocks, their factors and inverses come with the inverses of the batch
    for rows, places, valid in padded_supports(on, budget_bytes // 4):
        blocks = padded_blocks(matrix, places, valid)

        def write(inverses: Tensor, blocks: Tensor = blocks) -> None:
            inverses[:] = torch.cholesky_inverse(factor(blocks))

        yield rows, places, valid, write
