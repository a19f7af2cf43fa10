"""When memory is given back that nothing refers to any more: by Python's collector, and by the C library."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""The numbers of these settings in glibc's malloc.h."""

_FIRST, _LARGEST = 128 * 2**10, 32 * 2**20
"""The threshold in bytes that glibc begins with, and the one up to which it raises it."""

_within: ContextVar[bool] = ContextVar("within freed_at_once", default=False)


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Within this block large tensors are given back to the system as soon as nothing refers to them.

    glibc maps a piece of memory above a threshold by itself, and gives it back when it is freed; but it then
    raises the threshold to its size, and takes the next such piece from its heap, where what is free between
    pieces that are not still counts as taken: by chance up to three times what the tensors of a block take.
    Here the threshold stays where it begins, for all threads. Behind the outermost such block it is where
    glibc's own raising ends. Other C libraries are left as they are.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None or _within.get():
        yield
        return
    outside = _within.set(True)
    mallopt(_MMAP_THRESHOLD, _FIRST)
    mallopt(_TRIM_THRESHOLD, _FIRST)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        _within.reset(outside)


def give_back_memory() -> None:
    """Let the system have what nothing refers to any more.

    A session of a pruning and its loop refer to each other, and with them masks and activations wait for
    Python to look for such circles, which it does by the number of objects, not by their size. What was free
    in glibc's heap before `freed_at_once` is used there for tensors, and kept when these are freed.
    """
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """A function that glibc has beyond the standard; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
