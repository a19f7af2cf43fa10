"""The oracle: the exact change of the error when a unit is switched off, for every unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph.chain import Chain
from prunekit.graph.surgery import check_flags
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.units.chain_runner import BUDGET_BYTES, ActivationCache, ChainRunner
from prunekit.units.loss_delta import LossDelta, error_of, loss_delta
from prunekit.units.parallel_map import parallel_map
from prunekit.units.suffix import batched_suffix, mlp_suffix

_CACHE_BYTES = 2**21  # a block of variants stays in the processor's caches


def oracle_changes(
    chain: Chain,
    inputs: Tensor,
    targets: Tensor,
    error: Loss | str,
    *,
    groups: Sequence[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
    processes: int = 1,
) -> dict[str, Tensor]:
    """The exact E(unit off) - E(now) of every unit, E being the **mean** over the examples.

    The brute-force oracle of Wolfe, Sharma and Raj (arXiv 1701.04465, "The Incredible Shrinking Neural
    Network"), without computing anything twice: one forward pass; then each unit's removal is a change of the
    next layer's pre-activation by what the unit contributes, and what lies behind is run for many units at
    once. The network is seen in evaluation mode and is not changed.

    Args:
        chain: the network.
        inputs: (N, ...), on the network's device.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `ERRORS`. Squared error, cross-
            entropy and `absolute_error` have fast forms; any other is called once for each unit and chunk.
        groups: names of the groups wanted; all of them by default.
        kept: by group (units,) booleans, False for units that are off already; groups left out have none.
        budget_bytes: memory for activations. It bounds the chunks of examples and of units.
        processes: workers on this machine, each with a share of the examples (so that none repeats another's
            forward pass); the same to rounding. The training on several devices shares by itself: there each
            rank has its own examples, and the statistics add up.

    Returns:
        By group (units,) float64; NaN for units that are off already.

    Raises:
        InputError: for data, groups or kept units that do not fit the network.
    """
    error = error_of(error)
    kept = checked_kept(chain, kept)
    check_examples(inputs, targets)
    if processes != 1:

        def part(chosen: slice) -> dict[str, Tensor]:
            return oracle_changes(
                chain,
                inputs[chosen],
                targets[chosen],
                error,
                groups=groups,
                kept=kept,
                budget_bytes=budget_bytes // max(processes, 1),
            )

        return parallel_map(part, inputs, processes)
    with evaluating(*chain.modules), torch.no_grad():
        flow = ChainRunner(chain, inputs[:1])
        wanted = flow.chosen(groups)
        sums = {link.group.name: empty(link.group.units, inputs) for link in wanted}
        for chunk in flow.chunks(len(inputs), budget_bytes):
            now = ActivationCache(flow, inputs[chunk], kept)
            judged = loss_delta(error, now.outputs, targets[chunk])
            for link in wanted:
                sums[link.group.name] += unit_changes(flow, now, flow.links.index(link), judged, budget_bytes)
    return {name: total / len(inputs) for name, total in sums.items()}


def unit_changes(
    flow: ChainRunner, now: ActivationCache, place: int, judged: LossDelta, budget_bytes: int
) -> Tensor:
    """(units,) float64: the change of the error, summed over a pass's examples, for each unit of a link that
    is still kept; NaN for the others."""
    group = now.links[place].group
    kept = now.kept.get(group.name)
    device = now.z[place].device
    units = torch.arange(group.units, device=device)
    if kept is not None:
        units = units[kept]
    changes = torch.full((group.units,), torch.nan, dtype=torch.float64, device=device)
    if len(units):
        changes[units] = variant_changes(
            flow, now, place, units, torch.ones_like(units), judged, budget_bytes
        )
    return changes


def variant_changes(
    flow: ChainRunner,
    now: ActivationCache,
    place: int,
    units: Tensor,
    strength: Tensor,
    judged: LossDelta,
    budget_bytes: int,
) -> Tensor:
    """(C,) float64: the same for variants that each change one unit's gain to 1 - strength."""
    # an accelerator wants large blocks, a processor blocks that stay in its cache
    on_cpu = units.device.type == "cpu"
    block_bytes = min(budget_bytes // 2, _CACHE_BYTES) if on_cpu else budget_bytes // 2
    if now.links[place].flat:
        return mlp_suffix(now, place, units, strength, judged, block_bytes)
    bytes_each = flow.bytes_behind(now.links[place])
    return batched_suffix(now, place, units, strength, judged, block_bytes, bytes_each)


def empty(units: int, like: Tensor) -> Tensor:
    """(units,) zeros in float64 to add to."""
    return torch.zeros(units, dtype=torch.float64, device=like.device)


def checked_kept(chain: Chain, kept: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """By group (units,) booleans, copied.

    Raises:
        InputError: for a group that the chain does not have, or a wrong length or type.
    """
    found = {}
    for name, each in (kept or {}).items():
        check_flags(name, each, chain.group(name).units, allow_empty=True)
        found[name] = each.clone()
    return found


def check_examples(inputs: Tensor, targets: Tensor) -> None:
    """Whether there are as many inputs as targets, and any.

    Raises:
        InputError: if not.
    """
    if inputs.dim() < 2 or targets.dim() < 1 or len(inputs) != len(targets):
        raise InputError(
            "inputs (N, ...) and targets (N, ...) must have the same first dimension, "
            f"got the shapes {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    if len(inputs) == 0:
        raise InputError("there are no examples to judge units by")
