"""The oracle: the exact change of the error when a unit is switched off, for every unit."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunekit.errors import InputError, PrunekitError
from prunekit.graph.capture import Inputs
from prunekit.losses import Loss
from prunekit.units.means import check_examples, means, taken
from prunekit.units.runner import BUDGET_BYTES, Structure
from prunekit.worker import end_with_parent

Part = Callable[[slice], Mapping[str, Tensor]]
"""The means over a slice of the examples, by name."""


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


def parallel_map(part: Part, inputs: Tensor, processes: int) -> dict[str, Tensor]:
    """The means over all examples, from those of as many slices as there are processes, each on one thread.

    The processes are forked, as those of torch's loaders are, so that no network has to be sent.

    Raises:
        InputError: for less than one process, an accelerator, or a system that cannot fork.
        PrunekitError: if a process ends without a result.
    """
    if processes < 1:
        raise InputError(f"processes = {processes}: at least one is needed")
    if inputs.device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(
            f"processes = {processes}: only on a processor, and where processes can be forked; use 1"
        )
    processes = min(processes, len(inputs))
    context = multiprocessing.get_context("fork")
    bounds = [len(inputs) * k // processes for k in range(processes + 1)]
    slices = [slice(bounds[k], bounds[k + 1]) for k in range(processes)]
    sizes = {name: len(values) for name, values in part(slice(0, 1)).items()}  # also refuses what is wrong
    results = torch.zeros(processes, sum(sizes.values()), dtype=torch.float64)
    results.share_memory_()  # type: ignore[no-untyped-call]

    def work(number: int) -> None:
        end_with_parent()  # a worker of a study can be killed, and so can this one's parent
        torch.set_num_threads(1)
        results[number] = torch.cat(list(part(slices[number]).values()))

    workers = [context.Process(target=work, args=(number,), daemon=True) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise PrunekitError(f"one of {processes} processes ended without a result")
    counts = torch.tensor([each.stop - each.start for each in slices], dtype=torch.float64)
    means = (results * counts[:, None]).sum(0) / len(inputs)
    found = torch.split(means, list(sizes.values()))
    return dict(zip(sizes, found, strict=True))
