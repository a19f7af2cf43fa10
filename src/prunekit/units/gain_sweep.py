"""The error as a function of one unit's gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph.capture import Inputs
from prunekit.losses import Loss
from prunekit.units.loss_delta import LossDelta
from prunekit.units.means import means
from prunekit.units.runner import BUDGET_BYTES, Run, Structure


def gain_sweep(
    structure: Structure,
    inputs: Inputs,
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
        structure: a chain, or coupled groups of any network, seen in evaluation mode.
        inputs: (N, ...), on the network's device; of coupled groups a tuple or dict of arguments, too.
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
    grid = torch.linspace(0, 10, 101, dtype=torch.float64) if gains is None else gains.double()
    if grid.dim() != 1:
        raise InputError(f"gains must be (G,), got the shape {tuple(grid.shape)}")
    grid = grid.to(targets.device)
    for name, unit in units:
        count = structure.group(name).units
        if not 0 <= unit < count:
            raise InputError(f"the group {name!r} has the units 0 to {count - 1}, there is no {unit}")
        if name in (kept or {}) and not (kept or {})[name][unit]:
            raise InputError(f"unit {unit} of {name!r} is off already")

    def measure(run: Run, judge: LossDelta) -> dict[str, Tensor]:
        errors = grid.new_empty(len(units), len(grid))
        for group in dict.fromkeys(name for name, _ in units):
            rows = [row for row, (name, _) in enumerate(units) if name == group]
            which = torch.tensor([units[row][1] for row in rows], device=grid.device)
            changes = run.weighted(
                group,
                which.repeat_interleave(len(grid)),
                (1 - grid).repeat(len(rows)),
                judge,
                budget_bytes,
            )
            errors[rows] = changes.view(len(rows), len(grid)) + judge.total
        return {"errors": errors}

    groups = [name for name, _ in units]
    return means(
        structure, inputs, targets, error, measure, groups=groups, kept=kept, budget_bytes=budget_bytes
    )["errors"]
