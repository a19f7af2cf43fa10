"""Derivatives of the error by the gains of units, and what they predict for switching a unit off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.graph.capture import Inputs
from prunekit.losses import Loss
from prunekit.units.loss_delta import LossDelta
from prunekit.units.means import means
from prunekit.units.runner import BUDGET_BYTES, Run, Structure


@dataclass(frozen=True)
class GainDerivatives:
    """Derivatives by the gains of a group's units at gain 1; NaN for units that are off.

    Attributes:
        first: (units,) float64: dE/dgain.
        second: (units,) float64: d2E/dgain2, the unit's own only; None if it was not asked for.
    """

    first: Tensor
    second: Tensor | None

    @property
    def first_order(self) -> Tensor:
        """(units,): the predicted E(off) - E(on), ΔE1 = -dE/dgain."""
        return -self.first

    @property
    def second_order(self) -> Tensor:
        """(units,): the predicted E(off) - E(on), ΔE2 = -dE/dgain + 1/2 d2E/dgain2.

        Raises:
            ValueError: if there is no second derivative.
        """
        if self.second is None:
            raise ValueError("the second derivative was not asked for")
        return self.second / 2 - self.first


def gain_derivatives(
    structure: Structure,
    inputs: Inputs,
    targets: Tensor,
    error: Loss | str,
    *,
    second: bool = True,
    groups: Sequence[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, GainDerivatives]:
    """dE/dgain and the **exact** d2E/dgain2 of every unit, E being the mean over the examples.

    With a the unit's output, dE/dgain is the sum of a dE/da and d2E/dgain2 that of a^2 d2E/da2 and of all the
    products between different examples' positions, none of which is dropped (Wolfe, Sharma and Raj, arXiv
    1701.04465, drop those between units behind: see `recursion`). Where an activation has a kink, such as
    ReLU at 0, its second derivative counts as 0.

    Args:
        structure: a chain, or coupled groups of any network, seen in evaluation mode.
        inputs: (N, ...), on the network's device; of coupled groups a tuple or dict of arguments, too.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `ERRORS`.
        second: whether the second derivative is wanted.
        groups: names of the groups wanted; all of them by default.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Raises:
        InputError: for data, groups or kept units that do not fit the network.
    """

    def measure(run: Run, judge: LossDelta) -> dict[str, Tensor]:
        found = run.derivatives(run.names, judge, budget_bytes, second=second)
        return {
            name: torch.stack([each for each in both if each is not None]) for name, both in found.items()
        }

    sums = means(
        structure, inputs, targets, error, measure, groups=groups, kept=kept, budget_bytes=budget_bytes
    )
    for name in (kept or {}).keys() & sums.keys():
        sums[name][:, ~(kept or {})[name]] = torch.nan
    return {name: GainDerivatives(each[0], each[1] if second else None) for name, each in sums.items()}
