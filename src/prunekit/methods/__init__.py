"""The known methods, each one expression over the parts, with its paper. One family per file.

A method is a function from a few numbers to a `Recipe`. Those that retrain take `epochs` per step and, as
`training`, any other setting of `Training`. To change anything else about one, write the recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.errors import InputError
from prunekit.messages import shown
from prunekit.methods import second_order, unit_methods, weight_methods
from prunekit.methods.second_order import (
    alps,
    exact_layer_obs,
    iterative_obd,
    layer_obs,
    layer_obs_retrained,
    masked_least_squares,
    obd,
    obs,
    owl_wanda,
    sparsegpt,
    wanda,
)
from prunekit.methods.unit_methods import (
    apoz,
    apoz_units,
    filter_norm,
    geometric_median,
    maxout_pruning,
    n2ps,
    n2ps_units,
    network_slimming,
    oracle_units,
    random_units,
    skeletonization,
    structured_mlp,
    taylor_filters,
    taylor_units,
    thinet,
)
from prunekit.methods.weight_methods import (
    correlation,
    distilled_magnitude,
    erk_magnitude,
    gradient,
    gradual_magnitude,
    iterative_magnitude,
    layer_magnitude,
    lottery_ticket,
    lottery_ticket_linear,
    magnitude,
    movement,
    n_m,
    random,
    random_ticket,
    sensitivity_magnitude,
    snip,
    threshold_magnitude,
    unpruned,
)
from prunekit.recipe import Recipe

__all__ = [
    "METHODS",
    "MethodInfo",
    "alps",
    "apoz",
    "apoz_units",
    "correlation",
    "describe",
    "distilled_magnitude",
    "erk_magnitude",
    "exact_layer_obs",
    "filter_norm",
    "geometric_median",
    "gradient",
    "gradual_magnitude",
    "iterative_magnitude",
    "iterative_obd",
    "layer_magnitude",
    "layer_obs",
    "layer_obs_retrained",
    "lottery_ticket",
    "lottery_ticket_linear",
    "magnitude",
    "masked_least_squares",
    "maxout_pruning",
    "movement",
    "n2ps",
    "n2ps_units",
    "n_m",
    "network_slimming",
    "obd",
    "obs",
    "oracle_units",
    "owl_wanda",
    "random",
    "random_ticket",
    "random_units",
    "recipe",
    "sensitivity_magnitude",
    "skeletonization",
    "snip",
    "sparsegpt",
    "structured_mlp",
    "taylor_filters",
    "taylor_units",
    "thinet",
    "threshold_magnitude",
    "unpruned",
    "wanda",
]

METHODS: Mapping[str, Callable[..., Recipe]] = {
    method.__name__: method
    for family in (weight_methods, second_order, unit_methods)
    for method in vars(family).values()
    if inspect.isfunction(method) and method.__module__ == family.__name__
}
"""Every named method."""


@dataclass(frozen=True)
class MethodInfo:
    """A row of the table of methods.

    Attributes:
        name: as in Python, YAML and on the command line.
        summary: one sentence.
        paper: the source; empty for controls.
        shape: what goes together.
        needs: what the method needs besides the weights: calibration data, retraining, initial values.
        settings: its settings with their defaults.
    """

    name: str
    summary: str
    paper: str
    shape: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]


def recipe(name: str, **settings: Any) -> Recipe:
    """The recipe of a named method.

    Raises:
        InputError: if there is no such method, or it has no such setting (it names those that exist), or
            cannot take its value.
    """
    if name not in METHODS:
        raise InputError(f"there is no method {shown(name)}; methods are: {', '.join(METHODS)}")
    allowed = inspect.signature(METHODS[name]).parameters
    for key in settings:
        if key not in allowed:
            raise InputError(
                f"method {name}: unknown key {shown(key)}; allowed keys are: {', '.join(allowed)}"
            )
    return METHODS[name](**settings)


def describe(name: str) -> MethodInfo:
    """What there is to know of a method, read from its docstring and its recipe."""
    chosen = recipe(name)
    text = inspect.cleandoc(METHODS[name].__doc__ or "")
    paper = text.partition("Paper:")[2].strip()
    needs = [
        what
        for what, needed in (
            ("data", chosen.needs_data),
            ("retraining", chosen.trains),
            ("initial values", chosen.retrain.checkpoint is not None),
        )
        if needed
    ]
    defaults = {key: value.default for key, value in inspect.signature(METHODS[name]).parameters.items()}
    return MethodInfo(name, text.split("\n\n")[0], paper, chosen.shape.name, tuple(needs), defaults)
