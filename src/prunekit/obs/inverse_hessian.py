"""Hessians fit for an inversion: damped, without inputs that never vary; a small network's inverse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prunekit.errors import DataError, InputError

DEAD = 1e-12
"""Inputs whose own second moment is below this fraction of the mean one are dead: it is rounding."""


def damped(hessian: Tensor, damp: float, *, of: str = "inputs") -> tuple[Tensor, Tensor]:
    """The layer's Hessian with `damp` times the mean of its live diagonal added to the live diagonal.

    Inputs that are always zero (constant, for moments about the mean) have a zero on the diagonal. They are
    left out: their rows and columns are exactly zero in what is returned, by which `eliminate`, `refit` and
    the others know them. Fewer samples than inputs make the Hessian singular; damping makes up for it.

    Args:
        hessian: (n, n), the mean over the samples of x x^T.
        damp: relative to the mean diagonal; 1e-2 is a good value, 1e-5 to 1e-1 hardly matter.
        of: what its rows and columns are, for the message about a singular one.

    Returns:
        The damped matrix (n, n) in float64, and which inputs are live, (n,) booleans.

    Raises:
        InputError: if `damp` is negative or not finite, or the Hessian not square.
        DataError: if the Hessian is not finite, no matrix of second moments, or singular after damping.
    """
    if not 0 <= damp < float("inf"):
        raise InputError(f"damp must be a finite number >= 0, got {damp}")
    matrix = _checked(hessian).double()
    matrix = (matrix + matrix.T) / 2
    diagonal = matrix.diagonal()
    smallest = DEAD * diagonal.mean()
    if bool((diagonal < -smallest.abs()).any()):
        raise DataError(f"a Hessian of inputs has the negative diagonal element {float(diagonal.min()):g}")
    live = diagonal > smallest
    matrix = matrix * live.outer(live)
    added = damp * diagonal[live].mean() if bool(live.any()) else 0.0
    matrix = matrix + torch.diag(live * added)
    factor(matrix[live][:, live], of=of)
    return matrix, live


def damped_groups(name: str, hessians: Tensor, damp: float) -> list[Tensor]:
    """The Hessians (groups, columns, columns) of a weight, made fit for a factorisation, one by one.

    Raises:
        DataError: naming the layer, if one of them is singular after damping.
    """
    try:
        return [damped(hessian, damp)[0] for hessian in hessians]
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def live_inputs(matrix: Tensor) -> Tensor:
    """(n,) booleans: which inputs a matrix from `damped` has left in."""
    return _checked(matrix).diagonal() > 0


def factor(matrix: Tensor, *, of: str = "inputs") -> Tensor:
    """The Cholesky factors of (..., k, k) positive definite matrices in float64, of inputs or weights.

    Raises:
        DataError: if one of them is singular to working precision; it says to damp.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix)
    size = matrix.shape[-1]
    # what of each diagonal element the inputs before it leave unexplained
    left = lower.diagonal(dim1=-2, dim2=-1).square() / matrix.diagonal(dim1=-2, dim2=-1)
    if bool(failed.any()) or not bool((left > 4 * size * torch.finfo(torch.float64).eps).all()):
        raise DataError(
            f"the Hessian of {size} {of} is singular: some {of} are combinations of others, or there are "
            f"fewer samples than {of}; give a damp > 0 (1e-2 is a good value)"
        )
    return lower


def _checked(matrix: Tensor) -> Tensor:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"a Hessian must be a square matrix, got the shape {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise DataError("a Hessian of inputs is not finite: the inputs it was measured on held NaN or Inf")
    return matrix


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
