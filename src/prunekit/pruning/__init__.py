"""The one pruning loop: `prune()` walks it, and so does a training loop that a `Session` is attached to."""

import importlib
from typing import TYPE_CHECKING, Any

from prunekit.history import Pruned, Record
from prunekit.loggers import Logger
from prunekit.pruning.layer_sensitivity import SensitivityCurves
from prunekit.pruning.session import Evaluate, Session, prune
from prunekit.pruning.time_ahead import solving_time

if TYPE_CHECKING:
    from prunekit.pruning.sharded_weights import prune_sharded

__all__ = [
    "Evaluate",
    "Logger",
    "Pruned",
    "Record",
    "SensitivityCurves",
    "Session",
    "prune",
    "prune_sharded",
    "solving_time",
]


def __getattr__(name: str) -> Any:
    if name == "prune_sharded":  # DTensors take long to import, and few need them
        return importlib.import_module("prunekit.pruning.sharded_weights").prune_sharded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
