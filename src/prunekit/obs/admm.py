"""ADMM on the least-squares problem with a limited count: a search for the weights of a layer that stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunekit.obs.refit import check_rows

ITERATIONS = 300
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


def admm_support(
    matrix: Tensor, weights: Tensor, keep: Callable[[Tensor], Tensor], *, iterations: int = ITERATIONS
) -> Tensor:
    """A mask whose refitted layer is near to the given one, found together with its weights.

    Meng et al. (2024, ALPS, arXiv 2406.07831): minimise 1/2 tr((W - W0) H (W - W0)^T) over W = D with D in
    the set of allowed supports, by the alternating direction method of multipliers, on inputs that are scaled
    to unit second moments. The penalty ρ grows with the share of the support that still changes, until it
    does not; one eigendecomposition serves every ρ.

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
            changed = int((support != before).sum()) // 2
            if changed == 0:
                break
            share = changed / max(1, int(support.sum()))
            penalty *= next(growth for least, growth in _GROWTH if share >= least)
            before = support
    return support
