"""L0 regularisation of one layer: hard-concrete gates fitted to the layer's own outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit import hard_concrete
from prunekit.obs.least_squares import check_rows

ITERATIONS = 1000
_OPEN = 0.9
"""The probability with which a gate is open at first."""
_RATE = 0.1
"""Adam's rate for the locations of the gates; that of the weights is a fifth of it, of their size."""
_MULTIPLIER_RATE, _CURVATURE = 0.3, 30.0
"""How fast the multiplier rises by the density's excess, and the factor of the excess squared."""
_WARM_UP = 0.3
"""The share of the steps over which the wanted density falls from 1."""


@torch.enable_grad()
def fitted_gates(
    matrix: Tensor,
    weights: Tensor,
    gone: Tensor,
    density: float,
    *,
    iterations: int = ITERATIONS,
    generator: torch.Generator,
) -> Tensor:
    """Locations of the gates, higher = more probably open, at which so many are expected to be open.

    Minimises E tr((V z - W) H (V z - W)^T) / tr(W H W^T) over the weights V and the locations of independent
    gates z, one sample of all gates per step of Adam, under the constraint that the expected share of open
    gates is the density: by a Lagrangian l (s - t) + c (s - t)^2 whose multiplier l is ascended, while the
    target t falls linearly from 1 over the first steps. The inputs are scaled to unit second moments, so that
    one rate of learning serves all columns.

    Args:
        matrix: (n, n) second moments H of the layer's inputs, from `damped`.
        weights: (rows, n) the given weights W.
        gone: (rows, n) booleans, True for weights that are removed already; their gates stay closed.
        density: the share of all gates that are to be open.
        iterations: the number of steps.
        generator: on the CPU; the source of the samples.

    Returns:
        (rows, n) float32, in which closed gates are not marked.

    Raises:
        InputError: for shapes that do not fit.
    """
    live = check_rows(matrix, weights)
    scale = torch.where(live, matrix.diagonal().double(), 1.0).sqrt()
    moments = (matrix.double() / scale.outer(scale)).float()
    given = (weights.double() * live * scale).float()
    energy = ((given @ moments) * given).sum()
    there = (~gone).float()
    if not bool(energy > 0) or not bool(there.any()):
        return given.abs()  # nothing comes out of the layer, whatever is removed
    fitted = given.clone().requires_grad_()
    noise = torch.randn(given.shape, generator=generator).to(given.device)
    start = hard_concrete.location_of(torch.tensor(_OPEN))
    locations = (start + 0.01 * noise).to(given.device).requires_grad_()
    size = float((given * there).square().mean().sqrt())
    optimizer = torch.optim.Adam(
        [{"params": [fitted], "lr": _RATE / 5 * size}, {"params": [locations], "lr": _RATE}]
    )
    lagrangian = hard_concrete.Lagrangian(
        density, ramp=_WARM_UP * iterations, rates=(_MULTIPLIER_RATE, 0.0), curvature=_CURVATURE
    )
    for step in range(iterations):
        uniform = torch.rand(given.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(given.device)
        error = fitted * hard_concrete.sample(locations, uniform) * there - given
        lost = ((error @ moments) * error).sum() / energy
        share = (hard_concrete.open_probability(locations) * there).mean()
        optimizer.zero_grad()
        (lost + lagrangian(share, step)).backward()
        optimizer.step()
    return locations.detach()
