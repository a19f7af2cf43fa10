"""One process's error, which ends the work of all with what it says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed
from torch.distributed import distributed_c10d

from prunekit.distributed.collectives import processes, rank
from prunekit.errors import PrunekitError, first_line

TOGETHER_SECONDS = 10.0
"""Within it all processes have raised an error that they find together, such as one of the sums of all."""

_TELLING_SECONDS = 5.0
_POLL_SECONDS = 0.02
_KEY = "prunekit/failure"
_SETTLED = "_prunekit_settled"
_OF_CONNECTIONS = ("gloo", "nccl", "connection", "timed out", "process group", "socket")


@contextmanager
def failing_together() -> Iterator[None]:
    """What one process raises inside ends the work of the others inside, too, with its words.

    They wait for sums that would never come. An error that all processes raise, such as one of data that they
    refuse together, leaves the process group as it is. One that only some raise within `TOGETHER_SECONDS`
    ends the group: connections are closed, by which the others wake up. A process that hangs is noticed after
    the `timeout` of `init_process_group`.

    Raises:
        PrunekitError: with the first line of another process's error, where one has failed.
    """
    try:
        yield
    except Exception as error:
        if processes() == 1 or getattr(error, _SETTLED, False):
            raise
        found = _settled(error)
        setattr(found, _SETTLED, True)
        if found is error:
            raise
        raise found from error


def _settled(error: Exception) -> Exception:
    """The error to raise, once the other processes know of it, or the one of theirs that led to it."""
    store: Any = distributed_c10d._get_default_store()
    others = [number for number in range(processes()) if number != rank()]

    def failures(number: int) -> int:
        return int(store.add(f"{_KEY}/{number}", 0))

    own = failures(rank())
    if _broke_connection(error):
        _wait(_TELLING_SECONDS, lambda: any(failures(number) > own for number in others))
        failed = next((number for number in others if failures(number) > own), None)
        count = processes()
        if failed is None:
            said = "another process has ended, or does not answer: see what it says"
        else:
            text = store.get(f"{_KEY}/{failed}/{failures(failed)}").decode()
            said = f"process {failed} of {count} has failed: {text}"
            store.add(f"{_KEY}/{failed}/{failures(failed)}/heard", 1)
        _close()
        return PrunekitError(said)
    text = f"{type(error).__name__}: {first_line(error)}"
    store.set(f"{_KEY}/{rank()}/{own + 1}", text)
    store.add(f"{_KEY}/{rank()}", 1)
    if not _wait(TOGETHER_SECONDS, lambda: all(failures(number) > own for number in others)):
        heard = f"{_KEY}/{rank()}/{own + 1}/heard"
        _close()
        # the store may be this process's, and end with it
        _wait(_TELLING_SECONDS, lambda: int(store.add(heard, 0)) == len(others))
    return error


def _broke_connection(error: BaseException | None) -> bool:
    """Whether it comes from a collective operation that another process did not take part in."""
    while error is not None:
        if isinstance(error, distributed.DistError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _OF_CONNECTIONS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _wait(seconds: float, holds: Any) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(_POLL_SECONDS)
    return bool(holds())


def _close() -> None:
    """End the group, so that the others' operations fail; afterwards this process is alone."""
    if distributed.is_initialized():
        distributed_c10d._abort_process_group()
