"""Norms of the weights that lead to units and away from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.chain import Chain, UnitGroup
from prunekit.units.layers import weights_by_unit
from prunekit.units.means import checked_kept


def incoming_norms(
    chain: Chain,
    *,
    order: int = 1,
    groups: Sequence[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """L1 or L2 norm of each unit's incoming weights, biases left out; for filters over the whole kernel.

    With `kept`, weights from units that are off do not count: the greedy ranking of Li et al., "Pruning
    filters for efficient convnets" (arXiv 1608.08710); without it, the independent one.

    Args:
        chain: the network.
        order: 1 or 2.
        groups: names of the groups wanted; by default all but the network's input features, which have no
            incoming weights.
        kept: by group (units,) booleans, False for units that are off already.

    Returns:
        By group (units,) float64.

    Raises:
        InputError: for another order, an unknown group or the input features.
    """
    kept = checked_kept(chain, kept)
    found = {}
    for group in _chosen(chain, groups, with_inputs=groups is not None):
        if group.producer is None:
            raise InputError(f"the units of {group.name!r} are the network's inputs: no weights lead to them")
        weight = _weight(chain, group.producer)
        before = next((each for each in chain.groups if each.consumer == group.producer), None)
        if before is not None and before.name in kept:
            on = kept[before.name].repeat_interleave(before.repeat).to(weight.dtype)
            weight = weight * on.view(-1, *[1] * (weight.dim() - 2))
        found[group.name] = _norm(weight, order)
    return found


def outgoing_norms(
    chain: Chain,
    *,
    order: int = 1,
    groups: Sequence[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """L1 or L2 norm of each unit's outgoing weights: the consumer's, for all its inputs that the unit feeds.

    Args:
        chain: the network.
        order: 1 or 2.
        groups: names of the groups wanted; all of them by default.
        kept: by group (units,) booleans; weights to units that are off do not count.

    Returns:
        By group (units,) float64.

    Raises:
        InputError: for another order or an unknown group.
    """
    kept = checked_kept(chain, kept)
    found = {}
    for group in _chosen(chain, groups, with_inputs=True):
        _, consumer, _ = chain.split(group)
        weights = weights_by_unit(consumer, group)  # (units, outputs, ...)
        behind = next((each for each in chain.groups if each.producer == group.consumer), None)
        if behind is not None and behind.name in kept:
            weights = weights[:, kept[behind.name]]
        found[group.name] = _norm(weights, order)
    return found


def _chosen(chain: Chain, groups: Sequence[str] | None, *, with_inputs: bool) -> list[UnitGroup]:
    if groups is not None:
        return [chain.group(name) for name in groups]
    return [group for group in chain.groups if with_inputs or group.producer is not None]


def _weight(chain: Chain, name: str) -> Tensor:
    module = next(stage.module for stage in chain.stages if stage.module is not None and stage.name == name)
    return cast(nn.Linear, module).weight.detach()


def _norm(weight: Tensor, order: int) -> Tensor:
    if order not in (1, 2):
        raise InputError(f"order must be 1 or 2, got {order}")
    return weight.double().flatten(1).norm(order, dim=1)
