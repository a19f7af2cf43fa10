"""Removing units one after the other, always the one whose removal raises the error least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph.chain import Chain
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.units.chain_runner import BUDGET_BYTES, ActivationCache, ChainRunner
from prunekit.units.loss_delta import LossDelta, error_of, loss_delta
from prunekit.units.oracle import check_examples, checked_kept, empty, unit_changes

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
    chain: Chain,
    inputs: Tensor,
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
        chain: the network.
        inputs: (N, ...), on the network's device.
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
    check_examples(inputs, targets)
    if isinstance(rank, str) and rank != "oracle":
        raise InputError(f"rank must be 'oracle' or a function, got {rank!r}")
    with evaluating(*chain.modules), torch.no_grad():
        course = _Course(chain, inputs, targets, error_of(error), checked_kept(chain, kept), budget_bytes)
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
            chosen = next((each for each in queue if course.removable(each[1], floor)), None)
            if chosen is None:
                raise InputError(f"the rank names units for only {len(order)} of the {count} removals")
            queue.remove(chosen)
            change, place, unit = chosen
            course.remove(place, unit)
            order.append((course.flow.links[place].group.name, unit))
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
    """(predicted change, link, unit) of all kept units, the lowest first, equal ones by position."""
    found = rank({name: each.clone() for name, each in course.kept.items()})
    ranked = []
    for place, link in enumerate(course.flow.links):
        group, changes = link.group, found.get(link.group.name)
        if changes is None:
            continue
        if changes.shape != (group.units,):
            raise InputError(
                f"the rank of {group.name!r} has the shape {tuple(changes.shape)}, "
                f"there are {group.units} units"
            )
        values = changes.tolist()
        for unit in course.kept[group.name].nonzero().flatten().tolist():
            if values[unit] != values[unit]:
                raise InputError(f"the predicted change of unit {unit} of {group.name!r} is NaN")
            ranked.append((values[unit], place, unit))
    return sorted(ranked)


class _Course:
    """The present state of an elimination: which units are left, and the activations with them."""

    def __init__(
        self,
        chain: Chain,
        inputs: Tensor,
        targets: Tensor,
        error: Loss,
        kept: Mapping[str, Tensor],
        budget_bytes: int,
    ):
        self.flow = ChainRunner(chain, inputs[:1])
        self.kept = {
            group.name: kept.get(group.name, torch.ones(group.units, dtype=torch.bool, device=inputs.device))
            for group in chain.groups
        }
        self._inputs, self._targets, self._error, self._budget = inputs, targets, error, budget_bytes
        self._chunks = list(self.flow.chunks(len(inputs), budget_bytes))
        self._fits = self.flow.bytes_per_example * len(inputs) <= budget_bytes // 2
        self._passes = [self._pass(chunk) for chunk in self._chunks] if self._fits else []
        self._judges: list[LossDelta] = []

    def removable(self, place: int, floor: int) -> bool:
        return int(self.kept[self.flow.links[place].group.name].sum()) > floor

    def remove(self, place: int, unit: int) -> None:
        self.kept[self.flow.links[place].group.name][unit] = False
        for each in self._passes:
            each.remove(place, unit)
        self._judges = []

    def error(self) -> float:
        """The mean error over all examples."""
        return sum(judged.total for _, judged in self._all()) / len(self._inputs)

    def oracle(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """The true change of the error for each unit."""
        sums = {link.group.name: empty(link.group.units, self._inputs) for link in self.flow.links}
        for now, judged in self._all():
            for place, link in enumerate(self.flow.links):
                sums[link.group.name] += unit_changes(self.flow, now, place, judged, self._budget)
        return {name: total / len(self._inputs) for name, total in sums.items()}

    def _pass(self, chunk: slice) -> ActivationCache:
        return ActivationCache(self.flow, self._inputs[chunk], self.kept)

    def _all(self) -> Iterator[tuple[ActivationCache, LossDelta]]:
        """The present activations of every chunk, with who judges its outputs."""
        for number, chunk in enumerate(self._chunks):
            now = self._passes[number] if self._fits else self._pass(chunk)
            if number == len(self._judges):
                self._judges.append(loss_delta(self._error, now.outputs, self._targets[chunk]))
            yield now, self._judges[number]
