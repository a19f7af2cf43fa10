"""Skeletonization: the relevance of units, kept as a running value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph.capture import Inputs
from prunekit.losses import Loss
from prunekit.units.gains import gain_derivatives
from prunekit.units.loss_delta import absolute_error
from prunekit.units.runner import BUDGET_BYTES, Structure

DECAY = 0.8
"""What remains of the running relevance at each batch."""


def relevance(
    structure: Structure,
    batches: Iterable[tuple[Inputs, Tensor]],
    *,
    error: Loss | str = absolute_error,
    decay: float = DECAY,
    start: Mapping[str, Tensor] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, Tensor]:
    """The running relevance ρ^ of every unit; the least relevant go first.

    Mozer and Smolensky, "Skeletonization: a technique for trimming the fat from a network via relevance
    assessment", NIPS 1 (1989). ρ = -dE/dgain at gain 1 estimates what the error rises by without the unit. It
    is taken with the linear error sum |t - o|, since the squared error's derivative vanishes as the outputs
    approach the targets, and smoothed over the batches: ρ^ <- 0.8 ρ^ + 0.2 ρ.

    Args:
        structure: a chain, or coupled groups of any network, seen in evaluation mode.
        batches: (inputs, targets), on the network's device; class numbers become one-hot.
        error: the mean over the examples of a batch.
        decay: what remains of ρ^ at each batch, in [0, 1).
        start: ρ^ before the first batch, to go on from an earlier call; by default ρ of the first batch.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Returns:
        By group (units,) float64; NaN for units that are off.

    Raises:
        InputError: for no batches, a decay outside [0, 1), or data that do not fit the network.
    """
    if not 0 <= decay < 1:
        raise InputError(f"decay must be in [0, 1), got {decay}")
    running = None if start is None else dict(start)
    for inputs, targets in batches:
        found = gain_derivatives(
            structure, inputs, targets, error, second=False, kept=kept, budget_bytes=budget_bytes
        )
        new = {name: -each.first for name, each in found.items()}
        if running is None:
            running = new
            continue
        missing = [name for name in new if name not in running]
        if missing:
            raise InputError(f"start has no relevance for the group {missing[0]!r}")
        running = {name: decay * running[name] + (1 - decay) * new[name] for name in new}
    if running is None:
        raise InputError("there are no batches to take the relevance on")
    return running
