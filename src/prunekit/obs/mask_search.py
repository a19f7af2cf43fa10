"""Masks of a layer found together with its weights: by SparseGPT, and by ADMM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunekit.masks import lowest, lowest_per_row
from prunekit.obs.least_squares import check_rows, factor, live_inputs

Choose = Callable[[Tensor, int], Tensor]
"""(saliencies (rows, width), first column) -> (rows, width) booleans, True = kept."""

BLOCK = 128
"""Columns whose masks are chosen together, as published."""


def inverse_factor(matrix: Tensor) -> Tensor:
    """The upper triangular U with `U^T U = H^-1` and a positive diagonal; dead inputs stand alone, with ones.

    With P the reversal of the order, `P H P = M M^T` gives `U = P M^-1 P`: one factorisation, and no inverse
    of the matrix itself.

    Args:
        matrix: H (n, n), from `damped`.

    Returns:
        (n, n) float64.

    Raises:
        InputError: if the matrix is not square.
        DataError: if it is not finite or singular.
    """
    dead = ~live_inputs(matrix)
    reversed_ = matrix.double().flip(0, 1)
    reversed_.diagonal().add_(dead.flip(0))
    return triangular_inverse(factor(reversed_)).flip(0, 1)


_SMALL = 256
"""Columns up to which a triangular matrix is inverted by substitution."""


def triangular_inverse(lower: Tensor) -> Tensor:
    """(n, n): the inverse of a lower triangular matrix, from those of its halves by matrix products."""
    size = len(lower)
    if size <= _SMALL:
        one = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, one, upper=False)
    half = size // 2
    found = torch.zeros_like(lower)
    found[:half, :half] = first = triangular_inverse(lower[:half, :half])
    found[half:, half:] = second = triangular_inverse(lower[half:, half:])
    found[half:, :half] = (second @ lower[half:, :half] @ first).neg_()
    return found


def left_to_right(
    matrix: Tensor,
    weights: Tensor,
    choose: Choose,
    *,
    block: int = BLOCK,
    together: int | None = None,
    upper: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Freeze one column after the other; what is cut off is made up for by the columns behind it.

    Frantar and Alistarh (2023, arXiv 2301.00774). One Cholesky factor U of the inverse, `U^T U = H^-1`,
    serves all rows, because column j is made up for by the columns behind it alone. Dead inputs have nothing
    to make up for: their weights are the first to be cut off, and stay as they are where they are kept.

    Args:
        matrix: (n, n), from `damped`.
        weights: (rows, n).
        choose: which weights of some columns stay, by their saliencies w^2 / U_jj^2 as they are then.
        block: columns that are brought up to date at once; a matter of speed, unless chosen together.
        together: columns that are chosen at once; a block by default.
        upper: the matrix's `inverse_factor`, where that is at hand.

    Returns:
        The new weights (rows, n) float64, zero where they were cut off, and the mask.

    Raises:
        InputError: for shapes that do not fit.
        DataError: if the matrix is singular.
    """
    live = check_rows(matrix, weights)
    columns = len(live)
    upper = inverse_factor(matrix) if upper is None else upper
    diagonal = upper.diagonal()
    original = weights.double()
    weights = original * live
    mask = torch.zeros_like(weights, dtype=torch.bool)
    together = together or block
    for start in range(0, columns, block):
        end = min(start + block, columns)
        own = weights[:, start:end].T.contiguous()  # so that each column lies in one piece
        kept = torch.zeros_like(own, dtype=torch.bool)
        errors = torch.empty_like(own)
        for j in range(start, end):
            here = j - start
            if here % together == 0:
                some = slice(here, min(here + together, end - start))
                saliencies = own[some].square() / diagonal[start:end][some, None].square()
                kept[some] = choose(saliencies.T, j).T
            errors[here] = lost = own[here] * ~kept[here] / diagonal[j]
            own[here + 1 :] -= upper[j, j + 1 : end].outer(lost)
        weights[:, start:end] = (own * kept).T
        mask[:, start:end] = kept.T
        weights[:, end:].addmm_(errors.T, upper[start:end, end:], alpha=-1)
    return torch.where(live, weights, original * mask), mask


def choose_count(gone: Tensor, count: int, block: int = BLOCK) -> Choose:
    """Cut off `count` weights in all, the same share of each block of columns, lowest saliencies first.

    Args:
        gone: (rows, n) flags of weights that are cut off already and count.
        count: how many are cut off in the end, at least those that are already.
        block: the columns that `left_to_right` chooses at once.
    """
    rows, columns = gone.shape
    done = 0

    def choose(saliency: Tensor, start: int) -> Tensor:
        nonlocal done
        end = start + saliency.shape[1]
        own = gone[:, start:end]
        # as near to the share of the columns so far as what is gone, here and behind, allows
        least = max(int(own.sum()), count - done - rows * (columns - end))
        most = min(own.numel(), count - done - int(gone[:, end:].sum()))
        here = min(max(round(count * end / columns) - done, least), most)
        done += here
        return ~lowest(saliency.masked_fill(own, -torch.inf), here)

    return choose


def choose_pattern(gone: Tensor, removed: int) -> Choose:
    """Cut off the same number of each group of columns that is chosen together, in every row."""

    def choose(saliency: Tensor, start: int) -> Tensor:
        own = gone[:, start : start + saliency.shape[1]]
        return ~lowest_per_row(saliency.masked_fill(own, -torch.inf), removed)

    return choose


def choose_mask(mask: Tensor) -> Choose:
    """What a mask (rows, n) says."""
    return lambda saliency, start: mask[:, start : start + saliency.shape[1]]


ITERATIONS = 300
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


def admm_support(
    matrix: Tensor, weights: Tensor, keep: Callable[[Tensor], Tensor], *, iterations: int = ITERATIONS
) -> Tensor:
    """A mask whose refitted layer is near to the given one, found together with its weights.

    Meng et al. (2024, ALPS, arXiv 2406.07831): minimise 1/2 tr((W - W0) H (W - W0)^T) over W = D with D in
    the set of allowed supports, by the alternating direction method of multipliers, on inputs that are scaled
    to unit second moments. The penalty ρ grows with the share of the support that still changes, weights
    that enter and weights that leave, until none does. One eigendecomposition serves every ρ.

    Args:
        matrix: (n, n), from `damped`.
        weights: (rows, n) the given weights W0.
        keep: from (rows, n) importances to the mask of those that stay.
        iterations: at most so many.

    Returns:
        (rows, n) booleans, True = kept.

    Raises:
        InputError: for shapes that do not fit.
    """
    live = check_rows(matrix, weights)
    scale = torch.where(live, matrix.diagonal().double(), 1.0).sqrt()
    values, vectors = torch.linalg.eigh(matrix.double() / scale.outer(scale))
    values = values.clamp(min=0)
    given = weights.double() * live * scale
    pulled = ((given @ vectors) * values) @ vectors.T  # W0 H
    penalty = 0.1
    allowed, multiplier = given, torch.zeros_like(given)
    support = torch.ones_like(given, dtype=torch.bool)
    before = support
    for iteration in range(1, iterations + 1):
        right = pulled - multiplier + penalty * allowed
        free = ((right @ vectors) / (values + penalty)) @ vectors.T
        wanted = free + multiplier / penalty
        support = keep(wanted.abs())
        allowed = wanted * support
        multiplier = multiplier + penalty * (free - allowed)
        if iteration % 3 == 0:
            changed = int((support != before).sum())
            if changed == 0:
                break
            share = changed / max(1, int(support.sum()))
            penalty *= next(growth for most, growth in _GROWTH if share > most)
            before = support
    return support
