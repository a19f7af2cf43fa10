"""Running tasks in this process or in processes of their own, with the same results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from prunekit.study.pool import run_pool
from prunekit.study.tasks import Agenda, Failure, Task, Watcher, perform


def run_tasks(
    tasks: Sequence[Task], workers: int, watcher: Watcher, timeout: float | None = None
) -> list[Failure]:
    """Run every task after those that it waits for; a failure stops only what depends on it.

    Each task computes on one thread, so results do not depend on the number of workers. Ctrl-C ends the
    workers at once; stages write their files as a whole, so the next run goes on from there. A task that
    takes longer than `timeout` seconds is ended; for that it is in a process of its own also where there is
    one worker.

    Raises:
        KeyboardInterrupt: when the workers have ended.
    """
    agenda = Agenda(tasks, watcher)
    if workers == 1 and timeout is None:
        _run_here(agenda, watcher)
    else:
        run_pool(agenda, workers, watcher, timeout)
    return agenda.failures


def _run_here(agenda: Agenda, watcher: Watcher) -> None:
    with _one_thread():
        while (task := agenda.take()) is not None:
            began = time.perf_counter()
            failure = perform(task, partial(watcher.progressed, task))
            agenda.settle(task, time.perf_counter() - began, failure)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
