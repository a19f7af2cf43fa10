"""Interchangeable parts of a recipe: scores, granularities, allocations, schedules, repairs and the rest."""

import importlib
from types import ModuleType

__all__ = [
    "allocation",
    "augment",
    "granularity",
    "grow",
    "quantize",
    "regularize",
    "repair",
    "retrain",
    "schedule",
    "scores",
    "selection",
    "stopping",
    "teacher",
]


def __getattr__(name: str) -> ModuleType:
    """A module, imported when it is first asked for, as training needs some and others need training."""
    if name in __all__:
        return importlib.import_module(f"prunekit.parts.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
