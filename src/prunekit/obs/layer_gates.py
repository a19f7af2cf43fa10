"""L0 regularisation of one layer: Bernoulli gates fitted to the layer's own outputs, in expectation."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.obs.least_squares import check_rows

ITERATIONS = 200
_SOLVER_STEPS = 4
"""Steps of conjugate gradients for the weights under given gates; each starts where the last one ended."""
_DESCENT = 0.8
"""The share of the iterations over which the density falls, by the same factor in each."""


@torch.no_grad()
def fitted_gates(
    matrix: Tensor, weights: Tensor, gone: Tensor, density: float, *, iterations: int = ITERATIONS
) -> tuple[Tensor, Tensor]:
    """Gates at which so many are expected to be open, and the mean weights behind them.

    Minimises E tr((V z - W) H (V z - W)^T) over the weights V and the probabilities p of independent gates z
    in {0, 1}, under the constraint that the mean of p is the density: the objective of L0 regularisation
    (Louizos, Welling, Kingma 2018, arXiv 1712.01312, equation 2), for which a layer needs no relaxation and
    no samples. With the mean weights U = p V and unit second moments of the inputs the expectation is
    tr((U - W) H (U - W)^T) + sum (1 - p) / p U^2. Given U it is least for p = min(1, k |U|), with the k that
    meets the constraint; given p it is least squares, for which some steps of conjugate gradients are taken.
    These alternate while the density falls geometrically from 1.

    Args:
        matrix: (n, n) second moments H of the layer's inputs, from `damped`.
        weights: (rows, n) the given weights W.
        gone: (rows, n) booleans, True for weights that are removed already; their gates stay closed.
        density: the share of all gates that are to be open.
        iterations: the number of alternations.

    Returns:
        (rows, n) float32, the probabilities p, and of the same form the magnitudes of U in units of the
        root of the second moments of their inputs: the larger ones stay.

    Raises:
        InputError: for shapes that do not fit.
    """
    live = check_rows(matrix, weights)
    scale = torch.where(live, matrix.diagonal().double(), 1.0).sqrt()
    moments = (matrix.double() / scale.outer(scale)).float()
    given = weights.double() * live * scale
    size = given.square().mean().sqrt()
    given = (given / torch.where(size > 0, size, 1.0)).float()
    wanted = given @ moments
    mean = given * ~gone
    for iteration in range(1, iterations + 1):
        share = density ** min(1.0, iteration / (_DESCENT * iterations))
        probability = _open_probability(mean.abs(), share * mean.numel())
        mean = _mean_weights(moments, wanted, probability, mean)
    return probability, mean.abs()


def _open_probability(size: Tensor, total: float) -> Tensor:
    """min(1, k size) with the k at which its sum is the total; 1 for all but 0, if these are fewer."""
    ordered = size.double().flatten().sort(descending=True).values
    ordered = ordered[ordered > 0]
    if total >= len(ordered):
        return (size > 0).to(size.dtype)
    behind = ordered.flip(0).cumsum(0).flip(0)
    # k if the gates before each place are open for certain
    factors = (total - torch.arange(len(ordered), device=size.device)) / behind
    first = (factors * ordered <= 1 + 1e-9).nonzero()[0, 0]
    return (size.double() * factors[first]).clamp(max=1).to(size.dtype)


def _mean_weights(moments: Tensor, wanted: Tensor, probability: Tensor, mean: Tensor) -> Tensor:
    """The mean weights U after some steps towards U (H + (1 - p) / p) = W H, from those before.

    For U = sqrt(p) Y, whose matrix sqrt(p) H sqrt(p) + 1 - p has ones on its diagonal and no poles.
    """
    root = probability.sqrt()

    def product(rows: Tensor) -> Tensor:
        return root * ((root * rows) @ moments) + (1 - probability) * rows

    found = torch.where(root > 0, mean / torch.where(root > 0, root, 1.0), 0.0)
    left = root * wanted - product(found)
    direction, square = left, left.square().sum(1, keepdim=True)
    for _ in range(_SOLVER_STEPS):
        across = product(direction)
        step = _quotient(square, (direction * across).sum(1, keepdim=True))
        found, left = found + step * direction, left - step * across
        before, square = square, left.square().sum(1, keepdim=True)
        direction = left + _quotient(square, before) * direction
    return root * found


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1.0), 0.0)
