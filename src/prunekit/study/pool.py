"""Running of jobs, in this process or in worker processes, with the same results."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from types import ModuleType

import torch

from prunekit.measure.forward_pass import using_threads
from prunekit.settings import whole
from prunekit.study.jobs import (
    MAX_ATTEMPTS,
    START,
    Executor,
    Failure,
    Job,
    JobQueue,
    WarningsTo,
    Watcher,
    line_of,
    log_here,
    perform,
    perform_sent,
)
from prunekit.worker import work

PATIENCE = 10.0
"""Seconds that a worker is given to end before it is killed."""

MAX_WORKERS = 1_024
"""How many processes may work at a time."""


@dataclass(frozen=True)
class LocalPool(Executor):
    """Processes of this machine.

    Attributes:
        workers: how many; one per core if None.
        attempts: how often a job is begun whose process comes to an end.
    """

    workers: int | None = None
    attempts: int = 1

    def __post_init__(self) -> None:
        if self.workers is not None:
            whole("workers", self.workers, 1, MAX_WORKERS)
        whole("attempts", self.attempts, 1, MAX_ATTEMPTS)

    def connected(self) -> AbstractContextManager[None]:
        """Always ready: processes are started for jobs."""
        return nullcontext()

    def slots(self, jobs: int) -> int:
        """As many as there are workers, but no more than jobs."""
        most = min(os.cpu_count() or 1, MAX_WORKERS) if self.workers is None else self.workers
        return min(most, max(jobs, 1))

    def run(self, jobs: Sequence[Job], watcher: Watcher, timeout: float | None) -> list[Failure]:
        """As `run_jobs`."""
        return run_jobs(jobs, self.slots(len(jobs)), watcher, timeout, self.attempts)


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    watcher: Watcher,
    timeout: float | None = None,
    attempts: int = 1,
) -> list[Failure]:
    """Run every job after those that it waits for; a failure stops only what depends on it.

    Each job computes on one thread, so results do not depend on the number of workers. Ctrl-C ends the
    workers at once; stages write their files as a whole, so the next run goes on from there. A job that
    takes longer than `timeout` seconds is ended; for that it is in a process of its own also where there is
    one worker.

    Raises:
        KeyboardInterrupt: when the workers have ended.
    """
    queue = JobQueue(jobs, watcher, attempts)
    if workers == 1 and timeout is None:
        _run_here(queue, watcher)
    else:
        run_pool(queue, workers, watcher, timeout)
    return queue.failures


def _run_here(queue: JobQueue, watcher: Watcher) -> None:
    with using_threads(1):
        while (job := queue.take()) is not None:
            began = time.perf_counter()
            failure = perform(job, partial(watcher.progressed, job))
            queue.settle(job, time.perf_counter() - began, failure)


def run_pool(queue: JobQueue, processes: int, watcher: Watcher, timeout: float | None = None) -> None:
    """Run the jobs of a queue in so many processes; a worker that died is replaced.

    Args:
        queue: the jobs.
        processes: how many at the most.
        watcher: is told how it goes.
        timeout: seconds after its first report after which a job is ended, and has failed.

    Raises:
        KeyboardInterrupt: when the workers have ended.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads can hang
    workers: list[_Worker] = []
    try:
        while True:
            _hand_out(queue, workers, processes, context, timeout)
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            if not busy:
                return
            heard = wait(list(busy), _until_due(workers))
            for worker in busy.values():
                listens = worker.listen(queue, watcher) if worker.connection in heard else True
                if not listens or worker.is_late(queue):
                    workers.remove(worker)
    finally:
        _dismiss(workers)


def _until_due(workers: list[_Worker]) -> float | None:
    """Seconds until the first time limit; None where there is none."""
    due = [worker.due for worker in workers if worker.due is not None]
    return max(min(due) - time.monotonic(), 0.0) if due else None


def _hand_out(
    queue: JobQueue, workers: list[_Worker], processes: int, context: SpawnContext, timeout: float | None
) -> None:
    while True:
        idle = next((worker for worker in workers if worker.job is None), None)
        if idle is not None and not idle.process.is_alive():  # it died with nothing to do
            workers.remove(idle)
            continue
        if idle is None and len(workers) == processes:
            return
        job = queue.take()
        if job is None:
            return
        if idle is None:
            idle = _Worker(context, timeout)
            workers.append(idle)
        failure = idle.begin(job)
        if failure is not None:
            queue.settle(job, 0.0, failure)


def _dismiss(workers: list[_Worker]) -> None:
    """End all workers; they have nothing to lose, because stages write their files as a whole."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()


class _Worker:
    """A process, the pipe to it and the job that it is at.

    Attributes:
        due: when the job is ended, on the clock of `time.monotonic`.
    """

    def __init__(self, context: SpawnContext, timeout: float | None) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), name="prunekit worker")
        self.job: Job | None = None
        self.due: float | None = None
        self._timeout = timeout
        self._began = 0.0
        self._reported = False
        if sys.platform != "win32":
            # starting this helper of multiprocessing ends the holding back of Ctrl-C: let it be there before
            resource_tracker.ensure_running()
        with _interrupts_held(), _main_hidden():
            self.process.start()
        theirs.close()

    def begin(self, job: Job) -> Failure | None:
        """Give it a job; a failure if that cannot be sent."""
        try:
            content = pickle.dumps(job)
        except Exception as error:
            return Failure.of(job, error)
        self.job, self._reported = job, False
        self._began = time.perf_counter()
        if self._timeout is not None:
            self.due = time.monotonic() + self._timeout + START
        with suppress(OSError):  # if it has died, that is heard when it is listened to
            self.connection.send_bytes(content)
        return None

    def listen(self, queue: JobQueue, watcher: Watcher) -> bool:
        """Take one message of it; False if it has died."""
        job = self.job
        assert job is not None
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            self._lose(queue, _exit_reason(self.process.exitcode), lost=True)
            return False
        except Exception as error:  # something else has written into its pipe
            self._lose(queue, f"its process said what cannot be read: {line_of(error)}")
            return False
        if isinstance(message, float):
            self._hear_first()
            watcher.progressed(job, message)
        elif isinstance(message, logging.LogRecord):
            log_here(message)
        elif message is None or isinstance(message, Failure):
            self.job = self.due = None
            failure = message and replace(message, name=job.name)  # it knows none if it cannot be read
            queue.settle(job, self._seconds(), failure)
        else:
            self._lose(queue, "its process said something of its own")
            return False
        return True

    def is_late(self, queue: JobQueue) -> bool:
        """Whether its job has taken longer than it may; it has been killed then."""
        if self.due is None or time.monotonic() < self.due:
            return False
        self._lose(queue, f"took longer than {self._timeout:g} s, the limit of a cell")
        return True

    def _lose(self, queue: JobQueue, why: str, *, lost: bool = False) -> None:
        """Make an end of it and of its job."""
        job = self.job
        assert job is not None
        self.job = self.due = None
        self.process.kill()
        self.process.join()
        self.connection.close()
        queue.settle(job, self._seconds(), Failure(job.name, why, lost=lost))

    def _hear_first(self) -> None:
        """Let the time of the job begin, if it has not."""
        if self._timeout is not None and not self._reported:
            self._reported = True
            self.due = time.monotonic() + self._timeout

    def _seconds(self) -> float:
        return time.perf_counter() - self._began


def _exit_reason(code: int | None) -> str:
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


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Let a process be started that does not import the script of this one, as multiprocessing would have it.

    The script could take long before the worker watches for our end, and one without a guard would run the
    study once more. Jobs name what they need by module, and a script is none.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ---- in a worker process -----------------------------------------------------------------------------------


def serve(connection: Connection) -> None:
    """Do the jobs that come through a pipe, one after the other, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what a user's code prints is for the eye: stdout belongs to the parent's result
    torch.set_num_threads(1)
    _keep_tqdm_to_itself()
    channel = _ParentChannel(connection)
    logging.getLogger("prunekit").addHandler(WarningsTo(channel.warn))
    try:
        while True:
            content = connection.recv_bytes()
            channel.send(perform_sent(content, "job", lambda fraction: channel.send(float(fraction))))
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone, and nobody wants to read why


def _keep_tqdm_to_itself() -> None:
    """Let bars of tqdm, which torch.fx counts nodes by, do without a lock of several processes.

    A worker is ended from outside, and would leave its semaphore behind, of which Python warns at the end.
    """
    with suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())


class _ParentChannel:
    """The messages of a worker, of any thread, one at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._one_at_a_time = threading.Lock()

    def send(self, message: float | logging.LogRecord | Failure | None) -> None:
        with self._one_at_a_time:
            self._connection.send(message)

    def warn(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self.send(record)
