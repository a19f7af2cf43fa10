"""Python's search for objects that refer to each other in circles, kept to those that a call makes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_within: ContextVar[bool] = ContextVar("within old_objects_left_alone", default=False)


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Within this block Python looks for circles among the objects that are made in it, and no others.

    To look through all those of PyTorch and transformers takes a fifth of a second each time, which is as
    long as the analysis of a network, or a small block of one. What was free before, in circles, waits until
    the end. Where somebody keeps objects from being looked through, nothing is done.
    """
    # the inner of two such blocks does not ask what is frozen: Python counts it, object by object
    if _within.get() or gc.get_freeze_count():
        yield
        return
    outside = _within.set(True)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _within.reset(outside)
