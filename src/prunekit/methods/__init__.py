"""The known methods, each one expression over the parts, with its paper. One family per file.

A method is a function from a few numbers to a `Recipe`. Those that retrain take `epochs` per step and, as
`training`, any other setting of `Training`. To change anything else about one, write the recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.errors import InputError, instead, shown
from prunekit.methods import learned_methods, second_order, small_files, unit_methods, weight_methods
from prunekit.methods.learned_methods import *
from prunekit.methods.second_order import *
from prunekit.methods.small_files import *
from prunekit.methods.unit_methods import *
from prunekit.methods.weight_methods import *
from prunekit.recipe import Recipe

__all__ = ["METHODS", "MethodInfo", "describe", "recipe"]
_FAMILIES = (weight_methods, second_order, unit_methods, learned_methods, small_files)
__all__ += [name for family in _FAMILIES for name in family.__all__]

METHODS: Mapping[str, Callable[..., Recipe]] = {
    name: getattr(family, name) for family in _FAMILIES for name in vars(family) if name in family.__all__
}
"""Every named method."""


@dataclass(frozen=True)
class MethodInfo:
    """A row of the table of methods.

    Attributes:
        name: as in Python, YAML and on the command line.
        summary: one sentence.
        paper: the source; empty for controls.
        granularity: what goes together.
        needs: what the method needs besides the weights: calibration data, retraining, initial values.
        settings: its settings with their defaults.
    """

    name: str
    summary: str
    paper: str
    granularity: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]


def recipe(name: str, /, **settings: Any) -> Recipe:
    """The recipe of a named method.

    Raises:
        InputError: if there is no such method, or it has no such setting (it names those that exist), or
            cannot take its value.
    """
    if name not in METHODS:
        others = instead(name, METHODS, listed_by="prunekit methods")
        raise InputError(f"there is no method {shown(name)}{others}")
    allowed = inspect.signature(METHODS[name]).parameters
    for key in settings:
        if key not in allowed:
            raise InputError(
                f"method {name}: unknown key {shown(key)}{instead(key, allowed, 'allowed keys')}"
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
    return MethodInfo(name, text.split("\n\n")[0], paper, chosen.granularity.name, tuple(needs), defaults)
