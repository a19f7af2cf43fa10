"""The oracle: the exact change of the error without each unit; elimination of one unit after the other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prunekit import distributed
from prunekit.batches import Inputs
from prunekit.errors import InputError, PrunekitError
from prunekit.losses import Loss
from prunekit.units.gains import Progress, check_examples, checked_kept, means, runner_of
from prunekit.units.runner import BUDGET_BYTES, Runner, Structure, error_of, taken
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
    together: bool = False,
    progress: Progress | None = None,
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
        error: (outputs, targets) -> the mean over the examples, or a name of `LOSSES`. Squared error, cross-
            entropy and `absolute_error` have fast forms; any other is called once for each unit and chunk.
        groups: names of the groups wanted; all of them by default.
        kept: by group (units,) booleans, False for units that are off already; groups left out have none.
        budget_bytes: memory for activations. It bounds the chunks of examples and of units.
        processes: workers on this machine, each with a share of the examples (so that none repeats another's
            forward pass); the same to rounding. The training on several devices shares by itself: there each
            rank has its own examples, and the statistics add up.
        together: whether the processes of torch.distributed share out the units: all of them call this with
            the same network and examples, and each judges some of the units. For few examples and many units;
            where there are more examples than processes, a share of them for each repeats no forward pass.
        progress: told how far it is, where it is one process.

    Returns:
        By group (units,) float64; NaN for units that are off already.

    Raises:
        InputError: for data, groups or kept units that do not fit the network.
    """
    if together and processes != 1:
        raise InputError(f"processes = {processes}: where units are shared out, each process is one: use 1")
    if processes == 1:
        part = _own_units(together)
        found = means(
            structure,
            inputs,
            targets,
            error,
            lambda run: {name: run.changes(name, part) for name in run.names},
            groups=groups,
            kept=kept,
            budget_bytes=budget_bytes,
            progress=progress,
        )
        if together:
            distributed.sum_over_processes(list(found.values()))
        return found
    check_examples(inputs, targets)

    def of_examples(chosen: slice) -> dict[str, Tensor]:
        return oracle_changes(
            structure,
            taken(inputs, chosen),
            targets[chosen],
            error,
            groups=groups,
            kept=kept,
            budget_bytes=budget_bytes // max(processes, 1),
        )

    return parallel_map(of_examples, targets, processes)


def _own_units(together: bool) -> slice:
    """Which of the units that are kept are this process's; neighbours go to different ones."""
    return slice(distributed.rank(), None, distributed.processes()) if together else slice(None)


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


Rank = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""kept units by group (units,) -> predicted change of the error for each unit, by group (units,); values of
units that are off already are not looked at, and groups that are left out lose no units."""


@dataclass(frozen=True)
class Elimination:
    """A course of removals.

    Attributes:
        order: (group, unit) of each removal.
        before: the error before the first removal.
        errors: (removals,) float64: the true error after each removal.
        predicted: (removals,) float64: the change of the error that was predicted for each removal.
        kept: by group (units,) booleans: what is left.
    """

    order: tuple[tuple[str, int], ...]
    before: float
    errors: Tensor
    predicted: Tensor
    kept: dict[str, Tensor]


def eliminate(
    structure: Structure,
    inputs: Inputs,
    targets: Tensor,
    error: Loss | str,
    *,
    count: int | None = None,
    rank: Rank | str = "oracle",
    rerank: bool = True,
    kept: Mapping[str, Tensor] | None = None,
    floor: int = 0,
    budget_bytes: int = BUDGET_BYTES,
    together: bool = False,
) -> Elimination:
    """Remove units one after the other, always the one with the lowest **signed** predicted change.

    Wolfe, Sharma and Raj (arXiv 1701.04465). Nothing is retrained and the network is not changed. After a
    removal the activations are brought up to date from there on instead of computed again, as long as those
    of all examples fit the budget.

    Args:
        structure: a chain, or coupled groups of any network.
        inputs: (N, ...), on the network's device; of coupled groups a tuple or dict of arguments, too.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `LOSSES`.
        count: how many units to remove; by default all that `floor` allows.
        rank: "oracle" for the true change, or a function of the kept units.
        rerank: rank again after each removal; else once at the start.
        kept: by group (units,) booleans, False for units that are off already.
        floor: how many units each group keeps at least.
        budget_bytes: memory for activations.
        together: whether the processes of torch.distributed share out the units that the oracle judges, as in
            `oracle_changes`; the course is the same on all of them.

    Returns:
        The course; equal changes go by position: the group nearer to the input first, then the lower number.

    Raises:
        InputError: for data, kept units or a count that do not fit the network, an unknown rank, and
            predictions of the wrong length or NaN.
    """
    if isinstance(rank, str) and rank != "oracle":
        raise InputError(f"rank must be 'oracle' or a function, got {rank!r}")
    error = error_of(error)
    check_examples(inputs, targets)
    given, runner = checked_kept(structure, kept), runner_of(structure, inputs, None, budget_bytes)
    left = {
        name: given.get(name, torch.ones(units, dtype=torch.bool, device=targets.device))
        for name, units in runner.sizes.items()
    }
    with runner.evaluating(), torch.no_grad():
        possible = sum(max(0, int(each.sum()) - floor) for each in left.values())
        count = possible if count is None else count
        if not 0 <= count <= possible:
            raise InputError(
                f"{count} units cannot be removed: there are {possible} beyond {floor} in each group"
            )
        course = _Course(runner, inputs, targets, error, left, together)
        before = course.error()
        order: list[tuple[str, int]] = []
        errors: list[float] = []
        predicted: list[float] = []
        queue: list[tuple[float, int, int]] = []
        for _ in range(count):
            if rerank or not order:
                queue = _ranked(runner, left, rank if callable(rank) else course.oracle)
            chosen = next((each for each in queue if int(left[runner.names[each[1]]].sum()) > floor), None)
            if chosen is None:
                raise InputError(f"the rank names units for only {len(order)} of the {count} removals")
            queue.remove(chosen)
            change, place, unit = chosen
            course.remove(runner.names[place], unit)
            order.append((runner.names[place], unit))
            errors.append(course.error())
            predicted.append(change)
        return Elimination(
            tuple(order),
            before,
            torch.tensor(errors, dtype=torch.float64),
            torch.tensor(predicted, dtype=torch.float64),
            left,
        )


def _ranked(runner: Runner, kept: Mapping[str, Tensor], rank: Rank) -> list[tuple[float, int, int]]:
    """(predicted change, place of the group, unit) of all kept units, the lowest first, then the first."""
    found = rank({name: each.clone() for name, each in kept.items()})
    ranked = []
    for place, (name, units) in enumerate(runner.sizes.items()):
        changes = found.get(name)
        if changes is None:
            continue
        if changes.shape != (units,):
            raise InputError(
                f"the rank of {name!r} has the shape {tuple(changes.shape)}, there are {units} units"
            )
        values = changes.tolist()
        for unit in kept[name].nonzero().flatten().tolist():
            if values[unit] != values[unit]:
                raise InputError(f"the predicted change of unit {unit} of {name!r} is NaN")
            ranked.append((values[unit], place, unit))
    return sorted(ranked)


class _Course:
    """The present state of an elimination: the runs with the units that are left."""

    def __init__(
        self,
        runner: Runner,
        inputs: Inputs,
        targets: Tensor,
        error: Loss,
        kept: dict[str, Tensor],
        together: bool,
    ) -> None:
        self._kept, self._examples, self._together = kept, len(targets), together
        self._anew = partial(runner.runs, inputs, targets, error, kept)
        fits = runner.bytes_per_example * len(targets) <= runner.budget_bytes // 2
        self._runs = list(self._anew()) if fits else []

    def remove(self, name: str, unit: int) -> None:
        self._kept[name][unit] = False
        for run in self._runs:
            run.remove(name, unit)

    def error(self) -> float:
        """The mean error over all examples."""
        return sum(run.judge.total for run in self._runs or self._anew()) / self._examples

    def oracle(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """The true change of the error for each unit."""
        sums: dict[str, Tensor] = {}
        part = _own_units(self._together)
        for run in self._runs or self._anew():
            for name in run.names:
                sums[name] = sums.get(name, 0) + run.changes(name, part)
        if self._together:
            distributed.sum_over_processes(list(sums.values()))
        return {name: total / self._examples for name, total in sums.items()}
