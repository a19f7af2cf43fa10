"""Allocations that measure the network: a budget of what it costs, the loss that each layer bears."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from torch import Tensor, nn

from prunekit.errors import InputError, explaining, instead, shown
from prunekit.masks import Masks, lowest
from prunekit.measure import (
    Cost,
    count,
    human_bytes,
    human_count,
    human_seconds,
    latency,
    read_amount,
    state_bytes,
)
from prunekit.parts.allocation.rules import DECIDED, GRID, Ramp, share_of_round, shared_out
from prunekit.parts.base import Requirement
from prunekit.parts.context import ASKED, REACHED, STATED, Allocation, CostModel, StepContext
from prunekit.parts.schedule import Sparsity
from prunekit.permission import import_object
from prunekit.settings import STEPS
from prunekit.targets import Target

CostMetric = Callable[[nn.Module], float]
"""What a network costs by a measure of the user's own: it must fall as units go."""

_COSTS: dict[Cost, Callable[[nn.Module, Any], float]] = {
    "parameters": lambda model, _: sum(parameter.numel() for parameter in model.parameters()),
    "macs": lambda model, inputs: count(model, inputs).macs,
    "bytes": lambda model, _: state_bytes(model),
    "latency": lambda model, inputs: latency(model, inputs, warmup=3, runs=20).median,
}
_SHOWN: dict[Cost, Callable[[float], str]] = {
    "parameters": lambda value: f"{human_count(value)} parameters",
    "macs": lambda value: f"{human_count(value)} MACs",
    "bytes": lambda value: human_bytes(value),
    "latency": human_seconds,
}


def _measure(value: Any) -> Any:
    """A cost, or a function of the user's, also by its name as `package.module:function`."""
    if isinstance(value, str) and ":" in value:
        value = import_object(value)
    if callable(value) or (isinstance(value, str) and value in _COSTS):
        return value
    raise ValueError(
        f"{shown(value)} is neither a cost nor a function of a network{instead(value, _COSTS, 'costs')}"
    )


def _measure_name(of: Cost | CostMetric) -> str:
    if isinstance(of, str):
        return of
    return f"{of.__module__}:{getattr(of, '__qualname__', type(of).__qualname__)}"


_ALL_AT_ONCE = Requirement(
    "order",
    lambda order: order == "all",
    "{part} is solved over all layers at once: use the order 'all', not {value}",
)
_SHARES = Requirement(
    "schedule",
    lambda schedule: not schedule.of_count,
    "the schedule {value} states a number of units, {part} needs shares of what it counts: "
    "use 'linear', 'geometric', 'cubic', 'explicit' or 'one_shot'",
)


class Budget(Allocation):
    """The lowest scores of all layers go until what is left of the network is within a budget.

    The schedule's sparsity is then the fraction of the **cost** that goes, not of the units: with
    `of: macs` and sparsity 0.5 at most half of the multiply-accumulate operations stay, and the steps of a
    schedule are budgets that get smaller. With `at_most` the cost itself is stated, and the schedule is
    `allocation_decides`, whose rounds lead there from what the network costs. What would be left is built and
    counted, or timed, at each step of a bisection over the number of units, so that no fewer of the lowest
    scores would do. The granularity must be `unit` or `block`.

    Attributes:
        of: the cost: `parameters`; `macs` per example; `bytes` of the stored state, buffers included;
            `latency`, the median time of one run on the example inputs, on this machine and one thread, which
            is met as it was measured; or a metric of your own, a function from a network to a number that
            falls as units go, in YAML by its name, `package.module:function`.
        at_most: what may be left at the end, with its unit: "100 MMACs", "2 M parameters", "500 kB", "5 ms".
            A number alone counts what `of` says: MACs, parameters, bytes, seconds, or one's own metric.
        ramp: how the rounds lead to `at_most`: in equal steps, or as the schedule `cubic` has it.
        share: whether all layers compete in one ranking, or lose equal fractions (`per_layer`).
        per_cost: whether a unit's score is divided by what it saves: that of its layer's lowest unit, taken
            out of the whole network alone.
    """

    name = "budget"
    works_on = ("units", "blocks")
    of_cost = True
    of: Annotated[
        Cost | CostMetric, BeforeValidator(_measure), PlainSerializer(_measure_name, return_type=str)
    ] = "macs"
    at_most: float | str | None = None
    ramp: Ramp = "linear"
    share: Literal["global", "per_layer"] = "global"
    per_cost: bool = False

    @property
    def requires(self) -> tuple[Requirement, ...]:  # type: ignore[override]
        """One order of all layers; and a schedule that states shares, unless the budget states an amount."""
        return (_ALL_AT_ONCE, DECIDED) if self.at_most is not None else (_ALL_AT_ONCE, STATED, _SHARES)

    @model_validator(mode="after")
    def _is_of_one_cost(self) -> Budget:
        named = "of" in self.model_fields_set
        if self.at_most is None:
            if self.ramp != "linear":
                raise ValueError("'ramp' says how 'at_most' is reached: without it the schedule does")
        elif isinstance(self.at_most, str):
            _, cost = read_amount(self.at_most)
            if named and self.of != cost:
                raise ValueError(f"at_most = {self.at_most!r} is of {cost}, but 'of' is {self._name}")
            vars(self)["of"] = cost
        elif not named:
            raise ValueError(
                f"at_most = {self.at_most:g}: write its unit, as in '100 MMACs' or '5 ms', or say in 'of' "
                "what is counted"
            )
        elif self.at_most <= 0:
            raise ValueError(f"at_most = {self.at_most:g} must be above 0")
        return self

    @model_validator(mode="after")
    def _can_be_measured(self) -> Budget:
        if self.per_cost and self.share == "per_layer":
            raise ValueError("costs count between layers, which lose equal fractions: use the share 'global'")
        if self.per_cost and self.of == "latency":
            raise ValueError("what single units save of the latency is lost in its noise: use macs per cost")
        return self

    @property
    def compares(self) -> bool:  # type: ignore[override]
        """In one ranking of all layers."""
        return self.share == "global"

    @property
    def by_example(self) -> bool:  # type: ignore[override]
        """The network is run on it, if it does not only tell what is coupled."""
        return self.of in ("macs", "latency")

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Floors are looked at with the network, see `check_network`."""
        return

    def check_network(self, targets: Sequence[Target], sparsity: float | None, cost_model: CostModel) -> None:
        """The budget must be within reach of the floors."""
        if self.of in ("macs", "latency") and cost_model.example_inputs is None:
            raise InputError(f"a budget of {self.of} runs the network: give data, or example_inputs")
        most = {target.name: self.capacity(target.shape.numel(), max(target.least, 1)) for target in targets}
        whole = self._cost_of(cost_model, cost_model.elements.all_kept())
        goal = self._limit if sparsity is None else (1 - sparsity) * whole
        self._check_reached(self._cost_of(cost_model, cost_model.chosen(most)), whole, goal)

    def initial_state(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """What the last step was asked for, and what it has reached."""
        return {name: torch.zeros((), dtype=torch.float64) for name in (ASKED, REACHED)}

    def amounts(self, context: StepContext) -> dict[str, int]:
        """The smallest number of removals that meets the budget, by bisection."""
        assert context.cost_model is not None
        cost_model, names = context.cost_model, list(context.scores)
        whole = self._cost_of(cost_model, cost_model.elements.all_kept())
        order = self._order(context, cost_model, whole)
        measured: dict[int, float] = {}

        def after(removed: int) -> dict[str, int]:
            lost = np.bincount(order[:removed], minlength=len(names)).tolist()
            return {
                name: max(number, context.pruned.get(name, 0))
                for name, number in zip(names, lost, strict=True)
            }

        def cost(removed: int) -> float:
            if removed not in measured:  # a time is another one when it is taken again
                measured[removed] = self._cost_of(cost_model, cost_model.chosen(after(removed)))
            return measured[removed]

        if self.at_most is None:
            goal = (1 - context.sparsity) * whole
        else:
            goal = whole - (whole - self._limit) * share_of_round(context.step, self.ramp)
        low, high = 0, len(order)
        self._check_reached(cost(high), whole, goal)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if cost(middle) <= goal else (middle + 1, high)
        context.state[ASKED].fill_(goal)
        context.state[REACHED].fill_(cost(low))
        return after(low)

    @property
    def _limit(self) -> float:
        assert self.at_most is not None
        return read_amount(self.at_most)[0] if isinstance(self.at_most, str) else self.at_most

    @property
    def _name(self) -> str:
        return _measure_name(self.of)

    def shown(self, value: float) -> str:
        """A value of the cost as people read it, such as "41.0 M MACs"."""
        return (
            _SHOWN[self.of](value) if isinstance(self.of, str) else f"{value:.4g} {self._name.split(':')[1]}"
        )

    def _order(self, context: StepContext, cost_model: CostModel, whole: float) -> np.ndarray:
        """(removals,) the number of the layer that loses a unit, the lowest score first, ties by position.

        With equal fractions the k-th lowest of n units goes once (k - 1/2) / n of its layer have gone.
        """
        scores, layers = [], []
        for number, (name, each) in enumerate(context.scores.items()):
            values = each.double().cpu()
            if self.share == "per_layer":
                values = (torch.arange(values.numel(), dtype=torch.float64) + 0.5) / values.numel()
            elif self.per_cost:
                values = values / self._cost(name, context, cost_model, whole)
            least = max(context.min_kept.get(name, 0), 1)
            room = max(self.capacity(values.numel(), least), context.pruned.get(name, 0))
            scores.append(values.sort(stable=True).values[:room])
            layers.append(np.full(room, number))
        return np.concatenate(layers)[torch.cat(scores).argsort(stable=True).numpy()]

    def _cost(self, name: str, context: StepContext, cost_model: CostModel, whole: float) -> float:
        kept = cost_model.elements.all_kept()
        flags = kept[name].clone()
        flags[int(context.scores[name].argmin())] = False
        return whole - self._cost_of(cost_model, kept.replace({name: flags}))

    def _cost_of(self, cost_model: CostModel, kept: Masks) -> float:
        smaller = cost_model.elements.smaller(kept)
        if isinstance(self.of, str):
            return float(_COSTS[self.of](smaller, cost_model.example_inputs))
        with explaining(InputError, lambda: f"budget: the metric {self._name} failed"):
            value = float(self.of(smaller))
        if not 0 <= value < math.inf:
            raise InputError(
                f"budget: the metric {self._name} gave {value}: a number of at least 0 is needed"
            )
        return value

    def _check_reached(self, least: float, whole: float, goal: float) -> None:
        if least > goal:
            raise InputError(
                f"a budget of {self.shown(goal)}, {_share(goal, whole)} of {self.shown(whole)}, cannot be "
                f"reached: with a floor of {self.floor:g} of each layer and at least one unit the smallest "
                f"network has {self.shown(least)}, {_share(least, whole)}"
            )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.3g}" if whole else "-"


class Sensitivity(Allocation):
    """Each layer is pruned alone on a grid and the loss measured; then all are given the same loss increase.

    The increase that all layers may cost is found by bisection so that the total removed is exact. A curve
    that dips is taken at its running maximum, so that more removal never counts as cheaper.

    Attributes:
        grid: the sparsities at which a layer is tried, increasing.
    """

    name = "sensitivity"
    paper = "Han et al. 2015, arXiv 1506.02626, section 5"
    needs_data = True
    grid: tuple[Sparsity, ...] = Field(default=GRID, min_length=1, max_length=STEPS)

    @model_validator(mode="after")
    def _increasing(self) -> Sensitivity:
        if self.grid[0] <= 0 or any(later <= earlier for earlier, later in pairwise(self.grid)):
            raise ValueError(f"grid = {list(self.grid)} must be increasing above 0")
        return self

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Exactly round(sparsity * total), shared out at equal loss increase per layer."""
        assert context.loss_with is not None
        base = context.loss_with(context.kept)
        curves = {name: self._curve(name, context, base) for name in context.scores}
        sizes = {name: scores.numel() for name, scores in context.scores.items()}
        total = round(context.sparsity * sum(sizes.values()))
        wanted = self._at_equal_increase(curves, sizes, total, context.pruned)
        return shared_out(self, total, wanted, context)

    def _curve(self, name: str, context: StepContext, base: float) -> np.ndarray:
        """Loss increases at sparsity 0, at each point of the grid, and (as infinite) at 1."""
        assert context.loss_with is not None
        increases = [0.0]
        for sparsity in self.grid:
            mask = without_lowest(context.scores[name], context.kept[name], sparsity)
            increases.append(context.loss_with(context.kept.replace({name: mask})) - base)
        return np.maximum.accumulate(np.array(increases))

    def _at_equal_increase(
        self, curves: dict[str, np.ndarray], sizes: dict[str, int], total: int, lost: Mapping[str, int]
    ) -> dict[str, float]:
        points = np.array([0.0, *self.grid])
        low, high = 0.0, max(float(curve[-1]) for curve in curves.values())

        def wanted(increase: float) -> dict[str, float]:
            return {
                name: max(_reach(points, curve, increase) * sizes[name], lost.get(name, 0))
                for name, curve in curves.items()
            }

        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if sum(wanted(middle).values()) > total else (middle, high)
        return wanted(low)


def without_lowest(scores: Tensor, kept: Tensor, sparsity: float) -> Tensor:
    """Flags of a layer without its lowest scores, a fraction of all; what it has lost stays lost."""
    return ~lowest(scores, max(round(sparsity * scores.numel()), int((~kept).sum())))


def _reach(points: np.ndarray, curve: np.ndarray, increase: float) -> float:
    """The largest sparsity whose (interpolated) loss increase stays within `increase`."""
    last = int(np.searchsorted(curve, increase, side="right")) - 1
    if last >= len(points) - 1:
        return float(points[-1])
    step = curve[last + 1] - curve[last]
    return float(points[last] + (points[last + 1] - points[last]) * (increase - curve[last]) / step)
