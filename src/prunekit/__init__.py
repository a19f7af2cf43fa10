"""prunekit: every way to prune a neural network, behind one composition of parts.

Names are imported when they are first asked for: a worker process watches for the end of its parent before it
imports torch, which takes seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.batches import Batch
    from prunekit.errors import DataError, InputError, ModelError, PrunekitError
    from prunekit.masks import Masks
    from prunekit.merge import merge_layers
    from prunekit.packing import pack, unpack
    from prunekit.pruning import Pruned, Session, prune
    from prunekit.recipe import Recipe
    from prunekit.saving import (
        Architecture,
        load_masks,
        load_pretrained,
        load_session,
        save_pretrained,
        save_session,
    )
    from prunekit.task import Task
    from prunekit.training import Loop, Training, train

    __version__: str

__all__ = [
    "Architecture",
    "Batch",
    "DataError",
    "InputError",
    "Loop",
    "Masks",
    "ModelError",
    "Pruned",
    "PrunekitError",
    "Recipe",
    "Session",
    "Task",
    "Training",
    "__version__",
    "load_masks",
    "load_pretrained",
    "load_session",
    "merge_layers",
    "pack",
    "prune",
    "save_pretrained",
    "save_session",
    "train",
    "unpack",
]

_HOMES = {
    "Batch": "batches",
    **dict.fromkeys(("DataError", "InputError", "ModelError", "PrunekitError"), "errors"),
    "Masks": "masks",
    "merge_layers": "merge",
    **dict.fromkeys(("pack", "unpack"), "packing"),
    **dict.fromkeys(("Pruned", "Session", "prune"), "pruning"),
    "Recipe": "recipe",
    **dict.fromkeys(
        (
            "Architecture",
            "load_masks",
            "load_pretrained",
            "load_session",
            "save_pretrained",
            "save_session",
        ),
        "saving",
    ),
    "Task": "task",
    **dict.fromkeys(("Loop", "Training", "train"), "training"),
}
"""The module that each public name is imported from."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a tenth of the time that `prunekit --help` takes

        return version("prunekit")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"prunekit.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"prunekit.{name}") is not None:
        return importlib.import_module(f"prunekit.{name}")  # `import prunekit`, then `prunekit.report`
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
