"""The one pruning loop: `prune()` walks it, and so does a training loop that a `Session` is attached to."""

from typing import TYPE_CHECKING

import lazy_loader

from prunekit.history import Pruned, Record
from prunekit.loggers import Logger
from prunekit.pruning.session import Evaluate, Session, prune
from prunekit.pruning.time_ahead import solving_time

if TYPE_CHECKING:
    from prunekit.pruning.layer_sensitivity import SensitivityCurves
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

# what few need; sharded weights also import DTensors, which takes long
__getattr__, _, _ = lazy_loader.attach(
    __name__, submod_attrs={"layer_sensitivity": ["SensitivityCurves"], "sharded_weights": ["prune_sharded"]}
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
