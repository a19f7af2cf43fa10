"""N2PS: significance of input and hidden neurons, and which of them fall below the layer's average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph.chain import Chain, UnitGroup
from prunekit.modes import evaluating
from prunekit.units.chain_runner import BUDGET_BYTES, ActivationCache, pieces
from prunekit.units.layers import by_unit, unit_dim, weights_by_unit
from prunekit.units.oracle import checked_kept


def significance(
    chain: Chain,
    inputs: Tensor | Iterable[Tensor],
    *,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, Tensor]:
    """The significance s_i of every unit: mean over the patterns of sum_j |σ(a_i) w_ij|.

    After Augasta and Kathirvalavakumar, "A novel pruning algorithm for optimizing feedforward neural network
    of classification problems", Neural Processing Letters 34 (2011), doi 10.1007/s11063-011-9196-7.
    **The paper's formula was not available to us**: its abstract says that the significance is computed from
    the sigmoidal activation of the node and all the weights of its outgoing connections, and the formula here
    is our reading of it. For input features σ(a_i) is their value; for other activations than the sigmoid and
    for the positions of a filter, it is the mean magnitude of what the next layer reads.

    Args:
        chain: the network, seen in evaluation mode; read with `inputs=True` if input features are to be
            pruned as well.
        inputs: (N, ...), or batches of them, on the network's device.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Returns:
        By group (units,) float64.

    Raises:
        InputError: for no patterns, or such as do not fit the network.
    """
    kept = checked_kept(chain, kept)
    count = 0
    magnitudes: dict[str, Tensor] = {}
    with evaluating(*chain.modules), torch.no_grad():
        for flow, piece in pieces(chain, inputs, budget_bytes):
            now = ActivationCache(flow, piece, kept)
            count += len(piece)
            for link, x in zip(now.links, now.x, strict=True):
                x = x.T if link.flat else x
                dim = unit_dim(link.consumer, x)
                values = by_unit(x.abs(), link.group, dim).movedim((dim, dim + 1), (0, 1))
                values = values.flatten(3) if values.dim() > 3 else values.unsqueeze(-1)
                each = values.double().mean(-1).sum(-1)  # over positions, then over patterns: (units, repeat)
                magnitudes[link.group.name] = magnitudes.get(link.group.name, 0) + each
    return {
        group.name: (magnitudes[group.name] / count * _weights(chain, group, kept)).sum(1)
        for group in chain.groups
    }


def _weights(chain: Chain, group: UnitGroup, kept: Mapping[str, Tensor]) -> Tensor:
    """(units, repeat): the sum of |w| from each input to the units that are left."""
    _, consumer, _ = chain.split(group)
    weights = weights_by_unit(consumer, group).abs().double()
    behind = next((each.name for each in chain.groups if each.producer == group.consumer), "")
    if behind in kept:
        weights = weights[:, kept[behind]]
    return weights.sum(1).flatten(2).sum(2) if weights.dim() > 3 else weights.sum(1)


def insignificant(
    significance: Mapping[str, Tensor], *, tau: float = 1.0, kept: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Which units N2PS removes together: those below tau times the mean of their layer's kept units.

    Args:
        significance: by group (units,).
        tau: the threshold as a multiple of the mean, at least 0.
        kept: by group (units,) booleans; units that are off are neither counted nor marked.

    Returns:
        By group (units,) booleans, True for removal.

    Raises:
        InputError: for a negative tau.
    """
    if tau < 0:
        raise InputError(f"tau must be at least 0, got {tau}")
    found = {}
    for name, each in significance.items():
        on = (kept or {}).get(name)
        mean = each.mean() if on is None else each[on].mean()
        found[name] = (each < tau * mean) & (on if on is not None else each == each)
    return found
