"""Second moments made fit for a factorisation: inputs that never vary left out, the rest damped."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.errors import DataError, InputError

DEAD = 1e-12
"""Inputs whose own second moment is below this fraction of the mean one are dead: it is rounding."""


def damped(hessian: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """The layer's Hessian with `damp` times the mean of its live diagonal added to the live diagonal.

    Inputs that are always zero (constant, for moments about the mean) have a zero on the diagonal. They are
    left out: their rows and columns are exactly zero in what is returned, by which `eliminate`, `refit` and
    the others know them. Fewer samples than inputs make the Hessian singular; damping makes up for it.

    Args:
        hessian: (n, n), the mean over the samples of x x^T.
        damp: relative to the mean diagonal; 1e-2 is a good value, 1e-5 to 1e-1 hardly matter.

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
    factor(matrix[live][:, live])
    return matrix, live


def live_inputs(matrix: Tensor) -> Tensor:
    """(n,) booleans: which inputs a matrix from `damped` has left in."""
    return _checked(matrix).diagonal() > 0


def factor(matrix: Tensor) -> Tensor:
    """The Cholesky factors of (..., k, k) positive definite matrices in float64.

    Raises:
        DataError: if one of them is singular to working precision; it says to damp.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix)
    size = matrix.shape[-1]
    # what of each diagonal element the inputs before it leave unexplained
    left = lower.diagonal(dim1=-2, dim2=-1).square() / matrix.diagonal(dim1=-2, dim2=-1)
    if bool(failed.any()) or not bool((left > 4 * size * torch.finfo(torch.float64).eps).all()):
        raise DataError(
            f"the Hessian of {size} inputs is singular: some inputs are combinations of others, or there are "
            "fewer samples than inputs; give a damp > 0 (1e-2 is a good value)"
        )
    return lower


def _checked(matrix: Tensor) -> Tensor:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"a Hessian must be a square matrix, got the shape {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise DataError("a Hessian of inputs is not finite: the inputs it was measured on held NaN or Inf")
    return matrix
