"""Survivors put to their best values: least squares on what is kept, or the published update of L-OBS."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.obs.inverse_hessian import factor, live_inputs

BUDGET_BYTES = 64 * 2**20


def refit(matrix: Tensor, weights: Tensor, mask: Tensor, *, budget_bytes: int = BUDGET_BYTES) -> Tensor:
    """The kept weights that reproduce each output best: the least of (1/2)(w' - w)^T H (w' - w) per row.

    H_SS w'_S = (H w)_S for the kept inputs S of each row; where fewer inputs are gone than kept, by the other
    form of the same solution, w' = w - H^-1[:, R] (H^-1[R, R])^-1 w_R for the removed inputs R.

    Args:
        matrix: (n, n), from `damped`.
        weights: (rows, n), before anything was removed.
        mask: (rows, n) booleans, True = kept.
        budget_bytes: memory for the matrices of the rows that are solved together.

    Returns:
        (rows, n) in the type of `weights`, zero where nothing is kept. Weights of dead inputs stay as they
        are where they are kept.

    Raises:
        InputError: for shapes that do not fit.
        DataError: if the matrix is singular.
    """
    live = check_rows(matrix, weights, mask)
    inputs = live.nonzero().flatten()
    matrix = matrix.double()[inputs][:, inputs]
    old, kept = weights.double()[:, inputs], mask[:, inputs]
    found = torch.zeros_like(old)
    few_kept = kept.sum(1) * 2 <= len(inputs)
    if bool(few_kept.any()):
        rows, on = old[few_kept], kept[few_kept]
        found[few_kept] = _solved(matrix, rows @ matrix, on, budget_bytes)
    if not bool(few_kept.all()):
        rows, off = old[~few_kept], ~kept[~few_kept]
        inverse = torch.cholesky_inverse(factor(matrix))
        found[~few_kept] = (rows - _solved(inverse, rows, off, budget_bytes) @ inverse) * ~off
    result = (weights * mask).double()
    result[:, inputs] = found
    return result.to(weights.dtype)


def check_rows(matrix: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Which inputs are live, (n,) booleans, once the shapes have been seen to fit.

    Raises:
        InputError: if they do not.
        DataError: if the matrix is not finite.
    """
    live = live_inputs(matrix)
    if weights.dim() != 2 or weights.shape[1] != len(live):
        raise InputError(
            f"weights must be (rows, {len(live)}) as the Hessian is, got the shape {tuple(weights.shape)}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weights.shape):
        raise InputError(
            f"a mask of booleans with the shape {tuple(weights.shape)} is needed, "
            f"got {str(mask.dtype).removeprefix('torch.')} with the shape {tuple(mask.shape)}"
        )
    return live


def _solved(matrix: Tensor, right: Tensor, on: Tensor, budget_bytes: int) -> Tensor:
    """x with M_SS x_S = right_S in each row and 0 elsewhere; `right` and `on` are (rows, n)."""
    found = torch.zeros_like(right)
    for rows, places, valid in padded_supports(on, budget_bytes // 3):
        lower = factor(padded_blocks(matrix, places, valid))
        sides = right[rows[:, None], places] * valid
        values = torch.cholesky_solve(sides.unsqueeze(2), lower).squeeze(2)
        # padding repeats places that are not in the row's support, and its values are zero there
        found[rows[:, None], places] = values
    return found


def padded_supports(on: Tensor, budget_bytes: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows with about as many elements each, that a (k, k) float64 matrix of each fits the budget.

    Args:
        on: (rows, n) booleans.
        budget_bytes: for the matrices of rows that go together; one row always goes.

    Returns:
        (rows, places, valid) of each batch: the numbers of its rows (b,), and (b, k) the places of their
        elements in ascending order, then, where `valid` is False, places that are off.
    """
    counts, order = on.sum(1).sort(stable=True)
    sizes = counts.tolist()
    batches, end = [], len(sizes)
    while end > 0 and sizes[end - 1] > 0:
        width = sizes[end - 1]
        start = max(0, end - max(1, budget_bytes // (8 * width * width)))
        # rows with far fewer elements would mostly be padding
        while start < end - 1 and sizes[start] * 5 < width * 4:
            start += 1
        rows = order[start:end]
        places = on[rows].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        batches.append((rows, places, on[rows].gather(1, places)))
        end = start
    return batches


def padded_blocks(matrix: Tensor, places: Tensor, valid: Tensor) -> Tensor:
    """(b, k, k): the matrix on each row's places, and the identity where there is no such place."""
    blocks = matrix[places[:, :, None], places[:, None, :]]
    blocks.mul_(valid[:, :, None]).mul_(valid[:, None, :])
    blocks.diagonal(dim1=1, dim2=2).add_(~valid)
    return blocks


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
