"""Layer-wise OBS with one inverse for all rows of a layer: the published form."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.obs.inverse_hessian import factor
from prunekit.obs.refit import check_rows


def inverse_of(matrix: Tensor) -> Tensor:
    """(n, n) float64: the inverse on the live inputs of a matrix from `damped`, zero on the dead ones.

    Raises:
        InputError: if the matrix is not square.
        DataError: if it is not finite or singular.
    """
    live = check_rows(matrix, matrix)
    inputs = live.nonzero().flatten()
    inverse = torch.zeros_like(matrix, dtype=torch.float64)
    inverse[inputs[:, None], inputs] = torch.cholesky_inverse(factor(matrix.double()[inputs][:, inputs]))
    return inverse


def shared_saliency(inverse: Tensor, weights: Tensor) -> Tensor:
    """L_q = w_q^2 / (2 [H^-1]_qq), the error that removing a weight alone leaves once its row has made up.

    Dong, Chen and Pan (2017, arXiv 1705.07565): one inverse serves all rows of the layer.

    Args:
        inverse: (n, n), from `inverse_of`.
        weights: (rows, n).

    Returns:
        (rows, n) float64; zero for dead inputs.
    """
    live = check_rows(inverse, weights)
    return torch.where(live, weights.double().square() / (2 * inverse.diagonal().double()), 0.0)


def shared_update(inverse: Tensor, weights: Tensor, removed: Tensor) -> Tensor:
    """The weights after a step of the published L-OBS: -(w_q / [H^-1]_qq) H^-1 e_q for each removed weight q.

    When several weights of a row go in one step each is made up for **by itself**, from its value before the
    step; the updates are added and the removed weights set to zero. That is exact for one removal per row
    only: the updates of the others move weights that then are cut off. `refit` is the joint solution.

    Args:
        inverse: (n, n), from `inverse_of`; renewed by the caller as often as wanted.
        weights: (rows, n); what was removed in earlier steps is zero.
        removed: (rows, n) booleans, True for the weights that go in this step.

    Returns:
        (rows, n) in the type of `weights`. Weights that were removed before come back as the update moves
        them: the caller masks them.
    """
    live = check_rows(inverse, weights, removed)
    going = removed & live
    steps = torch.where(going, weights.double() / inverse.diagonal().double(), 0.0)
    return ((weights.double() - steps @ inverse.double()) * ~removed).to(weights.dtype)
