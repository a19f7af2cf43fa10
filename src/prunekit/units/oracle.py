"""The oracle: the exact change of the error when a unit is switched off, for every unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunekit.graph.capture import Inputs
from prunekit.losses import Loss
from prunekit.units.means import check_examples, means, taken
from prunekit.units.parallel_map import parallel_map
from prunekit.units.runner import BUDGET_BYTES, Structure


def oracle_changes(
    structure: Structure,
    inputs: Inputs,
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
    Network"), without computing anything twice: one forward pass; then only what comes behind the unit is run
    again, for many units at once. On a chain each removal is a change of the next layer's pre-activation by
    what the unit contributes; see `graph_runner` for other networks. Where statistics run over the units, as
    in layer norms, a unit that is off counts in them as zero. The network is seen in evaluation mode and is
    not changed.

    Args:
        structure: a chain, or coupled groups of any network.
        inputs: (N, ...), on the network's device; of coupled groups a tuple or dict of arguments, too.
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
    if processes == 1:
        return means(
            structure,
            inputs,
            targets,
            error,
            lambda run, judge: {name: run.changes(name, judge, budget_bytes) for name in run.names},
            groups=groups,
            kept=kept,
            budget_bytes=budget_bytes,
        )
    check_examples(inputs, targets)

    def part(chosen: slice) -> dict[str, Tensor]:
        return oracle_changes(
            structure,
            taken(inputs, chosen),
            targets[chosen],
            error,
            groups=groups,
            kept=kept,
            budget_bytes=budget_bytes // max(processes, 1),
        )

    return parallel_map(part, targets, processes)
