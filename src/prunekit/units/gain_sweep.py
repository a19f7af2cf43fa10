"""The error as a function of one unit's gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph.chain import Chain
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.units.chain_runner import BUDGET_BYTES, ActivationCache, ChainRunner
from prunekit.units.loss_delta import error_of, loss_delta
from prunekit.units.oracle import check_examples, checked_kept, empty, variant_changes


def gain_sweep(
    chain: Chain,
    inputs: Tensor,
    targets: Tensor,
    error: Loss | str,
    units: Sequence[tuple[str, int]],
    *,
    gains: Tensor | None = None,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Tensor:
    """The mean error of the outputs with one unit at a time at each of several gains, all others as they are.

    The error surfaces of Wolfe, Sharma and Raj (arXiv 1701.04465): gain 1 is the unit on, 0 off.

    Args:
        chain: the network, seen in evaluation mode.
        inputs: (N, ...), on the network's device.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `ERRORS`.
        units: (group, unit) pairs.
        gains: (G,) the grid; by default 0 to 10 in steps of 0.1.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Returns:
        (len(units), G) float64.

    Raises:
        InputError: for a unit that does not exist or is off, and for data that do not fit the network.
    """
    error = error_of(error)
    kept = checked_kept(chain, kept)
    check_examples(inputs, targets)
    grid = torch.linspace(0, 10, 101, dtype=torch.float64) if gains is None else gains.double()
    if grid.dim() != 1:
        raise InputError(f"gains must be (G,), got the shape {tuple(grid.shape)}")
    grid = grid.to(inputs.device)
    for name, unit in units:
        count = chain.group(name).units
        if not 0 <= unit < count:
            raise InputError(f"the group {name!r} has the units 0 to {count - 1}, there is no {unit}")
        if name in kept and not kept[name][unit]:
            raise InputError(f"unit {unit} of {name!r} is off already")
    errors = torch.stack([empty(len(grid), inputs) for _ in units]) if units else grid.new_empty(0, len(grid))
    with evaluating(*chain.modules), torch.no_grad():
        flow = ChainRunner(chain, inputs[:1])
        for chunk in flow.chunks(len(inputs), budget_bytes):
            now = ActivationCache(flow, inputs[chunk], kept)
            judged = loss_delta(error, now.outputs, targets[chunk])
            for place, link in enumerate(flow.links):
                rows = [row for row, (name, _) in enumerate(units) if name == link.group.name]
                if not rows:
                    continue
                which = torch.tensor([units[row][1] for row in rows], device=inputs.device)
                changes = variant_changes(
                    flow,
                    now,
                    place,
                    which.repeat_interleave(len(grid)),
                    (1 - grid).repeat(len(rows)),
                    judged,
                    budget_bytes,
                )
                errors[rows] += changes.view(len(rows), len(grid)) + judged.total
    return errors / len(inputs)
