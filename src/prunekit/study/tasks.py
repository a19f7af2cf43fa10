"""Tasks with dependencies, run in this process or in a pool of processes: the same code path for both."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from prunekit.errors import PrunekitError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """Something to be done once others are done.

    Attributes:
        name: unique; shown to the person.
        run: a function that can be sent to another process; called as `run(*arguments, progress)`, where
            `progress` takes the fraction done.
        arguments: its arguments.
        after: names of tasks that must have succeeded before.
        cost: the expected effort, in any unit that all tasks share.
    """

    name: str
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()
    cost: float = 1.0


@dataclass(frozen=True)
class Failure:
    """A task that did not succeed: its name, one line for the person, and the trace for the log."""

    name: str
    message: str
    trace: str


class Watcher(Protocol):
    """Who is told how a run goes."""

    def started(self, task: Task) -> None:
        """The task runs."""

    def progressed(self, task: Task, fraction: float) -> None:
        """The task is this far, in [0, 1]."""

    def finished(self, task: Task, seconds: float, failure: Failure | None) -> None:
        """The task has ended."""


def run_tasks(tasks: Sequence[Task], workers: int, watcher: Watcher) -> list[Failure]:
    """Run every task after those that it waits for; a failure stops only what depends on it.

    Each task computes on one thread, so results do not depend on the number of workers. Ctrl-C ends the
    workers at once; stages write their files as a whole, so the next run goes on from there.
    """
    if workers == 1:
        with _one_thread():
            return _run_here(tasks, watcher)
    return _run_pool(tasks, workers, watcher)


def _run_here(tasks: Sequence[Task], watcher: Watcher) -> list[Failure]:
    failures: dict[str, Failure] = {}
    for task in _in_order(tasks):
        if any(name in failures for name in task.after):
            failures[task.name] = Failure(task.name, "not run: what it starts from failed", "")
            continue
        watcher.started(task)
        began = time.perf_counter()
        failure = None
        try:
            task.run(*task.arguments, lambda fraction, task=task: watcher.progressed(task, fraction))
        except Exception as error:  # one failed cell must not lose the others
            failure = failures[task.name] = Failure(task.name, _line(error), traceback.format_exc())
        watcher.finished(task, time.perf_counter() - began, failure)
    return list(failures.values())


def _in_order(tasks: Sequence[Task]) -> Iterator[Task]:
    done: set[str] = set()
    left = list(tasks)
    while left:
        ready = [task for task in left if done.issuperset(task.after)]
        assert ready, "tasks wait for each other"
        for task in ready:
            yield task
        done |= {task.name for task in ready}
        left = [task for task in left if task.name not in done]


def _run_pool(tasks: Sequence[Task], workers: int, watcher: Watcher) -> list[Failure]:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    failures: dict[str, Failure] = {}
    succeeded: set[str] = set()
    waiting = {task.name: task for task in tasks}
    running: dict[Future[float], Task] = {}
    by_name = dict(waiting)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(queue,))

    def submit_ready() -> None:
        for task in list(waiting.values()):
            if any(name in failures for name in task.after):
                del waiting[task.name]
                failures[task.name] = Failure(task.name, "not run: what it starts from failed", "")
            elif succeeded.issuperset(task.after) and len(running) < workers:
                del waiting[task.name]
                running[pool.submit(_work, task)] = task
                watcher.started(task)

    try:
        submit_ready()
        while running:
            ended, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            while not queue.empty():
                name, fraction = queue.get()
                if name not in succeeded and name not in failures:
                    watcher.progressed(by_name[name], fraction)
            for future in ended:
                task = running.pop(future)
                failure, seconds = None, 0.0
                try:
                    seconds = future.result()
                    succeeded.add(task.name)
                except Exception as error:  # also a worker that died
                    cause = str(error.__cause__ or "")
                    failure = failures[task.name] = Failure(task.name, _line(error), cause)
                watcher.finished(task, seconds, failure)
            submit_ready()
    except KeyboardInterrupt:
        _terminate_workers()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return list(failures.values())


def _terminate_workers() -> None:
    for child in multiprocessing.active_children():
        child.terminate()


_send: Any = None
"""In a worker process: the queue to the process that started it."""


def _start_worker(queue: Any) -> None:
    global _send
    _send = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Task) -> float:
    began = time.perf_counter()
    task.run(*task.arguments, lambda fraction: _send.put((task.name, fraction)))
    return time.perf_counter() - began


def _line(error: Exception) -> str:
    if isinstance(error, PrunekitError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}"
    return f"{type(error).__name__}: {error}"


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
