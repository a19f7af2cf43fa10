"""Worker processes, each with a pipe of its own, so that one that dies takes only its own task with it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext

import torch

from prunekit.study.tasks import Agenda, Failure, Task, Watcher, perform

PATIENCE = 10.0
"""Seconds that a worker is given to end before it is killed."""


def run_pool(agenda: Agenda, workers: int, watcher: Watcher) -> None:
    """Run the tasks of an agenda in so many processes; a worker that died is replaced.

    Raises:
        KeyboardInterrupt: when the workers have ended.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads can hang
    crew: list[_Worker] = []
    try:
        while True:
            _hand_out(agenda, crew, workers, context)
            busy = {worker.connection: worker for worker in crew if worker.task is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                if not worker.listen(agenda, watcher):
                    crew.remove(worker)
    finally:
        _dismiss(crew)


def _hand_out(agenda: Agenda, crew: list[_Worker], workers: int, context: SpawnContext) -> None:
    while True:
        idle = next((worker for worker in crew if worker.task is None), None)
        if idle is not None and not idle.process.is_alive():  # it died with nothing to do
            crew.remove(idle)
            continue
        if idle is None and len(crew) == workers:
            return
        task = agenda.take()
        if task is None:
            return
        if idle is None:
            idle = _Worker(context)
            crew.append(idle)
        failure = idle.begin(task)
        if failure is not None:
            agenda.settle(task, 0.0, failure)


def _dismiss(crew: list[_Worker]) -> None:
    """End all workers; they have nothing to lose, because stages write their files as a whole."""
    for worker in crew:
        worker.process.terminate()
    for worker in crew:
        worker.process.join(PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()


class _Worker:
    """A process, the pipe to it and the task that it is at."""

    def __init__(self, context: SpawnContext) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name="prunekit worker")
        self.task: Task | None = None
        self._began = 0.0
        if sys.platform != "win32":
            # starting this helper of multiprocessing ends the holding back of Ctrl-C: let it be there before
            resource_tracker.ensure_running()
        with _interrupts_held():
            self.process.start()
        theirs.close()

    def begin(self, task: Task) -> Failure | None:
        """Give it a task; a failure if that cannot be sent."""
        try:
            content = pickle.dumps(task)
        except Exception as error:
            return Failure.of(task, error)
        self.task = task
        self._began = time.perf_counter()
        with suppress(OSError):  # if it has died, that is heard when it is listened to
            self.connection.send_bytes(content)
        return None

    def listen(self, agenda: Agenda, watcher: Watcher) -> bool:
        """Take one message of it; False if it has died."""
        task = self.task
        assert task is not None
        try:
            message: float | Failure | None = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            self.connection.close()
            agenda.settle(task, self._seconds(), Failure(task.name, _epitaph(self.process.exitcode)))
            return False
        if isinstance(message, float):
            watcher.progressed(task, message)
        else:
            self.task = None
            agenda.settle(task, self._seconds(), message)
        return True

    def _seconds(self) -> float:
        return time.perf_counter() - self._began


def _epitaph(code: int | None) -> str:
    if code == -getattr(signal, "SIGKILL", 9):
        return "its process was killed; the system does that when memory runs out"
    if code is not None and code < 0:
        return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"its process ended with exit code {code}"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let a process be started that Ctrl-C does not reach, from its first instruction on.

    Ctrl-C goes to the whole group of processes, but only the parent is to decide what it means. A worker
    inherits what is held back here; the parent gets afterwards what came meanwhile.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in a worker process -----------------------------------------------------------------------------------


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.dup2(2, 1)  # what a user's code prints is for the eye: stdout belongs to the parent's result
    torch.set_num_threads(1)
    try:
        while True:
            connection.send(_outcome(connection.recv_bytes(), connection))
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone, and nobody wants to read why


def _outcome(content: bytes, connection: Connection) -> Failure | None:
    try:
        task: Task = pickle.loads(content)
    except Exception as error:
        return Failure("task", f"cannot be read by its process: {type(error).__name__}: {error}")
    return perform(task, lambda fraction: connection.send(float(fraction)))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
