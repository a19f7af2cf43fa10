"""The one pruning loop: `prune()` walks it, and so does a training loop that a `Session` is attached to."""

from prunekit.history import Pruned, Record
from prunekit.pruning.session import Evaluate, Session, prune

__all__ = ["Evaluate", "Pruned", "Record", "Session", "prune"]
