"""The inverse Hessian of a whole small network, built up sample by sample."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prunekit.errors import DataError, InputError

BLOCK = 256
"""Rows of Jacobians that are taken in together; more would cost as much per row."""


def recursive_inverse(
    jacobians: Tensor | Iterable[Tensor], count: int, alpha: float, *, block: int = BLOCK
) -> Tensor:
    """The inverse of H = alpha I + (1/count) sum of x x^T over the rows x, without ever building H.

    Hassibi and Stork (1993): H^-1 <- H^-1 - H^-1 x x^T H^-1 / (count + x^T H^-1 x) for each row, from
    H^-1 = I / alpha. Here a block X of rows is taken in at once, by the same identity of Woodbury:
    H^-1 <- H^-1 - H^-1 X^T (count I + X H^-1 X^T)^-1 X H^-1.

    Args:
        jacobians: (rows, n), or blocks of that form: for each sample and output the derivative of the output
            by the weights, times the root of the error's second derivative by that output (1 for squared
            error with its half).
        count: number of samples; a network with several outputs has that many rows for each of them.
        alpha: the small number on the diagonal that the recursion starts from; absolute.
        block: rows that are taken in together.

    Returns:
        (n, n) float64.

    Raises:
        InputError: if alpha or the count is not positive, or the blocks differ in width.
        DataError: if a row is not finite, or there is none.
    """
    if not 0 < alpha < float("inf"):
        raise InputError(f"alpha must be positive and finite, got {alpha}")
    if count < 1:
        raise InputError(f"the number of samples must be >= 1, got {count}")
    inverse: Tensor | None = None
    for some in [jacobians] if isinstance(jacobians, Tensor) else jacobians:
        if inverse is None:
            inverse = torch.eye(some.shape[1], dtype=torch.float64, device=some.device) / alpha
        if some.dim() != 2 or some.shape[1] != len(inverse):
            raise InputError(f"blocks of rows with {len(inverse)} weights, then {tuple(some.shape)}")
        for rows in torch.split(some, block):
            _take_in(inverse, rows.double(), count)
    if inverse is None:
        raise DataError("there are no Jacobians to build a Hessian from")
    return inverse


def _take_in(inverse: Tensor, rows: Tensor, count: int) -> None:
    across = rows @ inverse
    middle = across @ rows.T
    middle.diagonal().add_(count)
    if not bool(middle.isfinite().all()):
        raise DataError("the Jacobians of the network's outputs are not finite")
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(middle), across, upper=False)
    inverse.addmm_(half.T, half, alpha=-1)
