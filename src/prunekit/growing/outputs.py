"""The output phase: the weights into the outputs, on frozen units, to a plateau of the error."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import LBFGS

from prunekit.growing.network import CascadeNetwork
from prunekit.growing.settings import CascadeSettings
from prunekit.losses import LOSSES


@torch.no_grad()
def train_outputs(
    network: CascadeNetwork, features: Tensor, targets: Tensor, settings: CascadeSettings
) -> float:
    """Train `network.output` in place; it ends with the best values met, never worse than it began.

    Args:
        network: of which nothing else changes.
        features: (N, inputs + units), what the outputs read.
        targets: (N, outputs), real values or one-hot classes.

    Returns:
        The training error; not finite only if it was not at the beginning.
    """
    loss = LOSSES[settings.loss]
    start = float(loss(network.output(features), targets))
    if not math.isfinite(start) or start <= 0:
        return start + 0.0  # cross-entropy can be -0.0
    # L-BFGS has absolute limits, while the scale of real targets is the user's. So a squared error is trained
    # in a unit near its root; as a power of two, it changes no digit on the way there and back.
    unit = 2.0 ** round(math.log2(start) / 2) if settings.loss == "squared_error" else 1.0
    parameters = list(network.output.parameters())
    for parameter in parameters:
        parameter.div_(unit)
    best = _minimise(network, features, targets / unit, settings, start / unit**2)
    for parameter in parameters:
        parameter.mul_(unit)
        parameter.grad = None
    return best * unit**2 + 0.0


def _minimise(
    network: CascadeNetwork, features: Tensor, targets: Tensor, settings: CascadeSettings, best: float
) -> float:
    """The smallest error met, from `best` on; the outputs end there."""
    loss = LOSSES[settings.loss]
    parameters = list(network.output.parameters())
    optimizer = LBFGS(
        parameters,
        max_eval=50 * settings.output_patience,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss(network.output(features), targets)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    for done in range(0, settings.output_epochs, settings.output_patience):
        before, kept = best, [parameter.detach().clone() for parameter in parameters]
        optimizer.param_groups[0]["max_iter"] = min(settings.output_patience, settings.output_epochs - done)
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        now = float(loss(network.output(features), targets))
        if not now < before:  # rounding at the minimum; also where a step left the finite numbers
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
            return before
        best = now
        if before - now <= settings.output_improvement * before:
            break
    return best
