"""Derivatives of the error by the gains of units, and what they predict for switching a unit off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.graph.chain import Chain
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.units.adjoints import adjoints
from prunekit.units.chain_runner import BUDGET_BYTES, ActivationCache, ChainRunner
from prunekit.units.curvature import second_derivatives
from prunekit.units.layers import by_unit, unit_dim
from prunekit.units.loss_delta import error_of, loss_delta
from prunekit.units.oracle import check_examples, checked_kept, empty


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
    chain: Chain,
    inputs: Tensor,
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
        chain: the network, seen in evaluation mode.
        inputs: (N, ...), on the network's device.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `ERRORS`.
        second: whether the second derivative is wanted.
        groups: names of the groups wanted; all of them by default.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Raises:
        InputError: for data, groups or kept units that do not fit the network.
    """
    error = error_of(error)
    kept = checked_kept(chain, kept)
    check_examples(inputs, targets)
    with evaluating(*chain.modules), torch.no_grad():
        flow = ChainRunner(chain, inputs[:1])
        wanted = flow.chosen(groups)
        places = [flow.links.index(link) for link in wanted]
        firsts = [empty(link.group.units, inputs) for link in wanted]
        seconds = [empty(link.group.units, inputs) for link in wanted]
        for chunk in flow.chunks(len(inputs), budget_bytes):
            now = ActivationCache(flow, inputs[chunk], kept)
            judged = loss_delta(error, now.outputs, targets[chunk])
            around = adjoints(now, error, targets[chunk], min(places, default=0))
            for place, first, curved in zip(places, firsts, seconds, strict=True):
                first += by_gain(now, place, around[place].x)
                if second:
                    units = torch.arange(len(first), device=first.device)
                    curved += second_derivatives(now, place, units, around, judged, budget_bytes // 4)
    found = {}
    for link, first, curved in zip(wanted, firsts, seconds, strict=True):
        off = ~kept.get(link.group.name, torch.ones_like(first, dtype=torch.bool))
        first[off] = curved[off] = torch.nan
        name = link.group.name
        found[name] = GainDerivatives(first / len(inputs), curved / len(inputs) if second else None)
    return found


def by_gain(now: ActivationCache, place: int, by_x: Tensor) -> Tensor:
    """(units,) float64: the sum over examples and positions of the unit's values times `by_x`."""
    link, x = now.links[place], now.x[place]
    dim = 0 if link.flat else unit_dim(link.consumer, x)
    product = by_unit(x * by_x, link.group, dim).movedim(dim, 0)
    return product.flatten(1).sum(1, dtype=torch.float64)
