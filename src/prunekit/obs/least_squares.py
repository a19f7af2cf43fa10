"""Least squares with a layer's Hessian: damping, inverses, and survivors put to their best values.

The Hessian is that of all rows of a layer. Inputs that never vary are left out of it. `refit` is the joint
solution for what is kept; `shared_update` is that of the published L-OBS.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prunekit.errors import DataError, InputError

BUDGET_BYTES = 64 * 2**20

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


def shared_update(inverse: Tensor, weights: Tensor, removed: Tensor, *, in_turn: bool = False) -> Tensor:
    """The weights after a step of the published L-OBS: -(w_q / [H^-1]_qq) H^-1 e_q for each removed weight q.

    When several weights of a row go in one step each is made up for **by itself**; the updates are added and
    the removed weights set to zero. That is exact for one removal per row only: the updates of the others
    move weights that then are cut off. `refit` is the joint solution.

    Args:
        inverse: (n, n), from `inverse_of`; renewed by the caller as often as wanted.
        weights: (rows, n); what was removed in earlier steps is zero.
        removed: (rows, n) booleans, True for the weights that go in this step.
        in_turn: whether w_q is the value that the updates before it in its row have left, in the order of
            the saliencies before the step, as in the authors' code; else it is the value before the step.

    Returns:
        (rows, n) in the type of `weights`. Weights that were removed before come back as the update moves
        them: the caller masks them.
    """
    live = check_rows(inverse, weights, removed)
    going = removed & live
    steps = torch.where(going, weights.double() / inverse.diagonal().double(), 0.0)
    if in_turn:
        order = shared_saliency(inverse, weights).argsort(dim=1, stable=True)
        for row in going.any(1).nonzero().flatten():
            turns = order[row][going[row, order[row]]]
            # what the k-th update takes its weight to zero from: the lower triangle, solved from above
            among = inverse[turns][:, turns].double()
            right = weights[row, turns].double().unsqueeze(1)
            steps[row, turns] = torch.linalg.solve_triangular(among, right, upper=False).squeeze(1)
    return ((weights.double() - steps @ inverse.double()) * ~removed).to(weights.dtype)


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
