"""The time that scores, selections and repairs of a recipe will take, told before they begin."""

from __future__ import annotations

import logging

from torch import nn

from prunekit.obs.rates import Rates
from prunekit.recipe import Plan, Recipe

log = logging.getLogger(__name__)

LONG = 60.0
"""Seconds from which on work is announced."""

USUAL = Rates(single=5e10, double=2.5e10, factorised=1e10, ranked=2e7, removal=(5e-9, 2e-11))
"""A processor's thread, by which it is seen whether measuring the rates is worth while."""


def solving_time(model: nn.Module, recipe: Recipe, rates: Rates | None = None) -> dict[str, float]:
    """Seconds by layer that a recipe's parts take for it, over all steps, from measured throughput.

    What is counted is what grows faster than the layer: factorisations, eliminations, passes over columns,
    ranks. Passes of the data through the network, and training, come on top.

    Args:
        model: the network.
        recipe: what is to be done to it, with a schedule that states its sparsity.
        rates: of this machine; measured now by default.

    Raises:
        InputError, ModelError: as `Recipe.plan`.
    """
    return of_plan(recipe.plan(model), recipe, rates or Rates.measured())


def of_plan(plan: Plan, recipe: Recipe, rates: Rates) -> dict[str, float]:
    """The same for a network whose plan is made."""
    found: dict[str, float] = {}
    if recipe.granularity.counts != "weights":
        return found
    for name, weight in plan.elements.weights.items():
        rows = len(weight)
        columns = weight.numel() // max(rows, 1)
        found[name] = sum(
            part.solving_seconds(rows, columns, step.sparsity or 0.0, rates)
            for step in plan.steps
            if name in step.layers
            for part in recipe.parts.values()
        )
    return found


def announce(plan: Plan, recipe: Recipe) -> None:
    """Log how long the work will take, where that is long; then the rates are measured."""
    if sum(of_plan(plan, recipe, USUAL).values()) < LONG:
        return
    layers = of_plan(plan, recipe, Rates.measured())
    total = sum(layers.values())
    if total < LONG:
        return
    longest = max(layers, key=layers.__getitem__)
    log.warning(
        "choosing and repairing the weights of %d layers will take about %s, most of it for %s (%s)",
        *(len(layers), in_words(total), longest, in_words(layers[longest])),
    )


def in_words(seconds: float) -> str:
    """A long time in its largest unit: "3.2 hours"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"
