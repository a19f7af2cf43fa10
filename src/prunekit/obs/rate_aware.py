"""Weights on a grid by optimal brain surgeon, with the bits of their values in what is minimised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.obs.least_squares import BUDGET_BYTES, check_rows, factor, padded_blocks, padded_supports


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that weights may take, and what each of them costs.

    Attributes:
        values: (values,) different numbers, 0 among them.
        flags: (rows, columns) the bits by which a value other than 0 costs more at a place than 0 does,
            whatever it is.
        sizes: (values,) the bits that each value costs beside that; 0 for the value 0.
    """

    values: Tensor
    flags: Tensor
    sizes: Tensor


class RowsOnGrid(NamedTuple):
    """What `rate_aware` has chosen.

    Attributes:
        chosen: (rows, columns) int64, the place of each weight's value in the grid.
        loss: the error (1/2) sum (w' - w) H (w' - w)^T plus the rate times the bits.
    """

    chosen: Tensor
    loss: float


def rate_aware(
    matrix: Tensor,
    weights: Tensor,
    grid: Grid,
    rate: float,
    *,
    mask: Tensor | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> RowsOnGrid:
    """Put one column after the other on a grid; those behind it make up for what that changes.

    Minimised is (1/2) (w' - w) H (w' - w)^T + rate * bits. The bits of weights that are still free are taken
    as those of a normal distribution, γ w'^2 / 2 with γ = 1 / (ln 2 var(w)), which adds rate γ to the
    diagonal of H and moves the weights to where that is least. A column takes the values of the grid that are
    best with their own bits in place of the normal ones. So the choice is exact for each weight, given those
    before it and free ones behind it; with a diagonal H it is the optimum, with a rate of 0 it is GPTQ.

    Args:
        matrix: (n, n) H, from `damped`.
        weights: (rows, n).
        grid: of the same rows and columns.
        rate: of a bit, in units of the error.
        mask: (rows, n) booleans: False for weights that are to be 0; the others make up for them first.
        budget_bytes: memory for the matrices of the rows that are worked on together.

    Raises:
        InputError: for shapes that do not fit, a grid without 0, or a rate that is negative or not finite.
        DataError: if the matrix is singular.

    Source: Conzelmann, Bamler 2025 (CERWU), arXiv 2505.18758.
    """
    live = check_rows(matrix, weights, mask)
    zeros = (grid.values == 0).nonzero().flatten()
    if len(zeros) != 1 or grid.flags.shape != weights.shape or grid.sizes.shape != grid.values.shape:
        raise InputError(
            "a grid needs the value 0 once, flags of the weights' shape and a size of each value"
        )
    if not (0 <= rate < math.inf):
        raise InputError(f"rate must be a finite number >= 0, got {rate}")
    exact, old = matrix.double(), weights.double()
    on = torch.ones_like(old, dtype=torch.bool) if mask is None else mask
    variance = float(old[on].var(correction=0)) if bool(on.any()) else 0.0
    curved = rate / (math.log(2) * variance) if variance > 0 else 0.0
    # an input that is always zero stands alone; without bits any value of its weight is as good
    filled = exact + torch.diag(curved + (~live).double() * (curved == 0))
    chosen = torch.full(old.shape, int(zeros[0]), dtype=torch.int64, device=old.device)
    wanted = old @ exact
    for rows, places, valid, blocks in _batches(filled, on, budget_bytes):
        found = _one_by_one(
            blocks,
            wanted[rows].gather(1, places) * valid,
            grid.flags[rows].gather(1, places).double(),
            grid,
            rate,
            curved,
        )
        chosen[rows] = chosen[rows].scatter(1, places, torch.where(valid, found, zeros[0]))
    moved = grid.values.double()[chosen] - old
    bits = grid.sizes.double()[chosen] + grid.flags.double() * (chosen != zeros[0])
    return RowsOnGrid(chosen, float((moved @ exact * moved).sum() / 2 + rate * bits.sum()))


_RowGroup = tuple[Tensor, Tensor, Tensor, Tensor]
"""(rows, places, valid, the matrices (rows or 1, places, places) on these places)."""


def _batches(matrix: Tensor, on: Tensor, budget_bytes: int) -> Iterator[_RowGroup]:
    """Rows that have all columns share one matrix; the others have one each."""
    whole = on.all(1)
    rows = whole.nonzero().flatten()
    if len(rows):
        places = torch.arange(on.shape[1], device=on.device).expand(len(rows), -1)
        yield rows, places, on[rows], matrix[None]
    for rows, places, valid in padded_supports(on & ~whole[:, None], budget_bytes // 4):
        yield rows, places, valid, padded_blocks(matrix, places, valid)


def _one_by_one(
    blocks: Tensor, wanted: Tensor, flags: Tensor, grid: Grid, rate: float, curved: float
) -> Tensor:
    """(rows, places): the chosen values of each place in turn.

    Args:
        blocks: (rows or 1, places, places) the matrices with the normal distribution's bits on the diagonal.
        wanted: (rows, places) H w.
        flags: (rows, places).
        grid, rate: as given.
        curved: what the bits have added to the diagonal.
    """
    inverses = torch.cholesky_inverse(factor(blocks))
    upper = torch.linalg.cholesky(inverses, upper=True)
    weights = (inverses @ wanted[:, :, None]).squeeze(2)
    values = grid.values.double()
    present = (values != 0).double()
    fixed = rate * grid.sizes.double() - curved * values.square() / 2
    chosen = torch.zeros(weights.shape, dtype=torch.int64, device=weights.device)
    for place in range(weights.shape[1]):
        pivot = upper[:, place, place]
        error = ((weights[:, place, None] - values) / pivot[:, None]).square() / 2
        cost = error + fixed + rate * flags[:, place, None] * present
        best = cost.argmin(1)
        chosen[:, place] = best
        lost = (weights[:, place] - values[best]) / pivot
        weights[:, place + 1 :] -= lost[:, None] * upper[:, place, place + 1 :]
    return chosen
