"""Removing units one after the other, always the one whose removal raises the error least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph.capture import Inputs
from prunekit.losses import Loss
from prunekit.units.loss_delta import LossDelta, error_of, loss_delta
from prunekit.units.means import check_examples, checked_kept, runner_of, taken
from prunekit.units.runner import BUDGET_BYTES, Run, Structure

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
) -> Elimination:
    """Remove units one after the other, always the one with the lowest **signed** predicted change.

    Wolfe, Sharma and Raj (arXiv 1701.04465). Nothing is retrained and the network is not changed. After a
    removal the activations are brought up to date from there on instead of computed again, as long as those
    of all examples fit the budget.

    Args:
        structure: a chain, or coupled groups of any network.
        inputs: (N, ...), on the network's device; of coupled groups a tuple or dict of arguments, too.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `ERRORS`.
        count: how many units to remove; by default all that `floor` allows.
        rank: "oracle" for the true change, or a function of the kept units.
        rerank: rank again after each removal; else once at the start.
        kept: by group (units,) booleans, False for units that are off already.
        floor: how many units each group keeps at least.
        budget_bytes: memory for activations.

    Returns:
        The course; equal changes go by position: the group nearer to the input first, then the lower number.

    Raises:
        InputError: for data, kept units or a count that do not fit the network, an unknown rank, and
            predictions of the wrong length or NaN.
    """
    if isinstance(rank, str) and rank != "oracle":
        raise InputError(f"rank must be 'oracle' or a function, got {rank!r}")
    course = _Course(structure, inputs, targets, error_of(error), kept, budget_bytes)
    with course.runner.evaluating(), torch.no_grad():
        possible = sum(max(0, int(each.sum()) - floor) for each in course.kept.values())
        count = possible if count is None else count
        if not 0 <= count <= possible:
            raise InputError(
                f"{count} units cannot be removed: there are {possible} beyond {floor} in each group"
            )
        before = course.error()
        order: list[tuple[str, int]] = []
        errors: list[float] = []
        predicted: list[float] = []
        queue: list[tuple[float, int, int]] = []
        for _ in range(count):
            if rerank or not order:
                queue = _ranked(course, rank if callable(rank) else course.oracle)
            chosen = next(
                (each for each in queue if int(course.kept[course.names[each[1]]].sum()) > floor), None
            )
            if chosen is None:
                raise InputError(f"the rank names units for only {len(order)} of the {count} removals")
            queue.remove(chosen)
            change, place, unit = chosen
            course.remove(course.names[place], unit)
            order.append((course.names[place], unit))
            errors.append(course.error())
            predicted.append(change)
        return Elimination(
            tuple(order),
            before,
            torch.tensor(errors, dtype=torch.float64),
            torch.tensor(predicted, dtype=torch.float64),
            course.kept,
        )


def _ranked(course: _Course, rank: Rank) -> list[tuple[float, int, int]]:
    """(predicted change, place of the group, unit) of all kept units, the lowest first, then the first."""
    found = rank({name: each.clone() for name, each in course.kept.items()})
    ranked = []
    for place, name in enumerate(course.names):
        changes, units = found.get(name), course.runner.sizes[name]
        if changes is None:
            continue
        if changes.shape != (units,):
            raise InputError(
                f"the rank of {name!r} has the shape {tuple(changes.shape)}, there are {units} units"
            )
        values = changes.tolist()
        for unit in course.kept[name].nonzero().flatten().tolist():
            if values[unit] != values[unit]:
                raise InputError(f"the predicted change of unit {unit} of {name!r} is NaN")
            ranked.append((values[unit], place, unit))
    return sorted(ranked)


class _Course:
    """The present state of an elimination: which units are left, and the runs with them."""

    def __init__(
        self,
        structure: Structure,
        inputs: Inputs,
        targets: Tensor,
        error: Loss,
        kept: Mapping[str, Tensor] | None,
        budget_bytes: int,
    ):
        count, given = check_examples(inputs, targets), checked_kept(structure, kept)
        self.runner = runner_of(structure, inputs)
        self.names = self.runner.names
        self.kept = {
            name: given.get(name, torch.ones(units, dtype=torch.bool, device=targets.device))
            for name, units in self.runner.sizes.items()
        }
        self._inputs, self._targets, self._error, self._budget = inputs, targets, error, budget_bytes
        self._chunks = list(self.runner.chunks(count, budget_bytes))
        self._fits = self.runner.bytes_per_example * count <= budget_bytes // 2
        self._runs: list[Run] = []
        self._judges: list[LossDelta] = []

    def remove(self, name: str, unit: int) -> None:
        self.kept[name][unit] = False
        for each in self._runs:
            each.remove(name, unit)
        self._judges = []

    def error(self) -> float:
        """The mean error over all examples."""
        return sum(judge.total for _, judge in self._all()) / len(self._targets)

    def oracle(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """The true change of the error for each unit."""
        sums: dict[str, Tensor] = {}
        for run, judge in self._all():
            for name in self.names:
                sums[name] = sums.get(name, 0) + run.changes(name, judge, self._budget)
        return {name: total / len(self._targets) for name, total in sums.items()}

    def _all(self) -> Iterator[tuple[Run, LossDelta]]:
        """The present run of every chunk, with who judges its outputs."""
        for number, chunk in enumerate(self._chunks):
            if number < len(self._runs):
                run = self._runs[number]
            else:
                run = self.runner.run(taken(self._inputs, chunk), self.kept)
                self._runs += [run] if self._fits else []
            if number == len(self._judges):
                self._judges.append(loss_delta(self._error, run.outputs, self._targets[chunk]))
            yield run, self._judges[number]
