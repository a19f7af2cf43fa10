"""Jobs with dependencies: what is ready, what failed, and what is given up with it."""

from __future__ import annotations

import errno
import logging
import pickle
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from logging.handlers import QueueHandler
from typing import Any, Protocol

from prunekit.errors import PrunekitError, brief, escaped

log = logging.getLogger(__name__)

LONGEST_LINE, LONGEST_TRACE = 2_000, 10_000
"""Characters that are kept of what an exception says, and of where it happened."""

START = 60.0
"""Seconds that a job with a time limit is given besides until it reports: to load code and data."""

MAX_ATTEMPTS = 100
"""How often a job can be begun at most."""

Progress = Callable[[float], None]
"""Takes the fraction of a job that is done; its first call says where the job begins, 0 if afresh."""


@dataclass(frozen=True)
class Job:
    """Something to be done once others are done.

    Attributes:
        name: unique; shown to the person.
        run: a function that can be sent to another process; called as `run(*arguments, progress)`.
        arguments: its arguments.
        after: names of jobs that must have succeeded before.
        cost: the expected effort, in any unit that all jobs share.
        reads: the files and folders that it reads, below the folder of the study.
        writes: those that it writes there, the last of them when it is done.
    """

    name: str
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()
    cost: float = 1.0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A job that did not succeed.

    Attributes:
        name: the job's.
        message: one line for the person.
        trace: where it happened, for the log.
        skipped: whether it was not even begun, because of another's failure.
        disk_full: whether no other job could write its results either.
        lost: whether it is the process or the machine that came to an end, so that another try may succeed.
    """

    name: str
    message: str
    trace: str = ""
    skipped: bool = False
    disk_full: bool = False
    lost: bool = False

    @classmethod
    def of(cls, job: Job, error: BaseException) -> Failure:
        """The failure that an exception is; to be called while it is handled."""
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return cls(job.name, line_of(error), _trace(), disk_full=full)


class Watcher(Protocol):
    """Who is told how a run goes."""

    def started(self, job: Job) -> None:
        """The job runs."""

    def progressed(self, job: Job, fraction: float) -> None:
        """The job is this far, in [0, 1]."""

    def finished(self, job: Job, seconds: float, failure: Failure | None) -> None:
        """The job has ended, or will not be begun."""

    def lost(self, job: Job, failure: Failure) -> None:
        """The process of the job has come to an end; the job will be started again."""


class Executor(Protocol):
    """Who runs the jobs of a study: processes of this machine, or a cluster."""

    def connected(self) -> AbstractContextManager[Any]:
        """Be ready for jobs until the block ends; blocks may lie in each other."""

    def slots(self, jobs: int) -> int:
        """How many of so many jobs run at a time."""

    def run(self, jobs: Sequence[Job], watcher: Watcher, timeout: float | None) -> list[Failure]:
        """Run every job after those that it waits for; a failure stops only what depends on it.

        Args:
            jobs: in the order in which they are begun, as far as they do not wait.
            watcher: is told how it goes.
            timeout: seconds after its first report after which a job is ended, and has failed.

        Raises:
            KeyboardInterrupt: when what was under way has been ended.
        """


class JobQueue:
    """Which jobs are ready, under way and done.

    Args:
        jobs: all of them.
        watcher: is told how it goes.
        attempts: how often a job is begun whose process or machine comes to an end.
    """

    def __init__(self, jobs: Sequence[Job], watcher: Watcher, attempts: int = 1) -> None:
        names = {job.name for job in jobs}
        assert len(names) == len(jobs), "two jobs have the same name"
        assert all(names.issuperset(job.after) for job in jobs), "a job waits for one that is not there"
        self._waiting = list(jobs)
        self._watcher = watcher
        self._attempts = attempts
        self._lost: Counter[str] = Counter()
        self._succeeded: set[str] = set()
        self.failures: list[Failure] = []

    def take(self) -> Job | None:
        """The first job that is ready, which is then under way; None if there is none at present."""
        for job in self._waiting:
            if self._succeeded.issuperset(job.after):
                self._waiting.remove(job)
                self._watcher.started(job)
                return job
        return None

    def settle(self, job: Job, seconds: float, failure: Failure | None) -> None:
        """A job that was under way has ended; what waits for one that failed is given up.

        One whose process came to an end is ready again, if it has been begun less often than it may. After
        one that found the disk full everything is given up: hours of computing could not be kept.
        """
        if failure is not None and failure.lost:
            self._lost[job.name] += 1
            if self._lost[job.name] < self._attempts:
                tries = f"{self._lost[job.name] + 1} of {self._attempts}"
                log.warning("%s: %s; begun again (%s)", job.name, failure.message, tries)
                self._watcher.lost(job, failure)
                self._waiting.insert(0, job)
                return
        self._watcher.finished(job, seconds, failure)
        if failure is None:
            self._succeeded.add(job.name)
            return
        self.failures.append(failure)
        for other in [other for other in self._waiting if failure.disk_full or job.name in other.after]:
            if other in self._waiting:  # else it was given up with one that it waits for
                self._waiting.remove(other)
                skipped = Failure(other.name, f"not run, because {job.name} failed", skipped=True)
                self.settle(other, 0.0, skipped)


def perform(job: Job, progress: Progress) -> Failure | None:
    """Run one job; what it raises becomes its failure, so that one failed cell does not lose the others."""
    try:
        job.run(*job.arguments, progress)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's score may do anything, also call exit()
        return Failure.of(job, error)
    return None


def perform_sent(content: bytes, name: str, progress: Progress) -> Failure | None:
    """Run a job that another process has sent as it is pickled.

    Args:
        content: the job; only what this study's own process has written is read here.
        name: its name, for the failure of one that cannot be read.
        progress: takes the fraction that is done.
    """
    try:
        job: Job = pickle.loads(content)
    except PrunekitError as error:  # of a study, which is made again from its settings
        return Failure(name, line_of(error))
    except Exception as error:
        return Failure(name, f"cannot be read by its process: {line_of(error)}")
    try:
        return perform(job, progress)
    except KeyboardInterrupt as error:  # no Ctrl-C, which does not reach a worker, but the user's code
        return Failure.of(job, error)


class WarningsTo(QueueHandler):
    """A handler that gives warnings, such as can be sent to another process, to a function."""

    def __init__(self, tell: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(tell)  # type: ignore[arg-type]  # no queue, but enqueue() knows
        self.setLevel(logging.WARNING)
        self._tell = tell

    def enqueue(self, record: logging.LogRecord) -> None:
        """Give one to the function."""
        self._tell(record)


def log_here(record: logging.LogRecord) -> None:
    """Log what another process has logged, as if it had been said here."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def line_of(error: BaseException) -> str:
    """What an exception says in one line that can be printed, whatever its text is."""
    try:
        text = _text(error)
    except BaseException:  # what a user's exception does to say its text is the user's code
        text = f"{type(error).__name__}, whose text cannot be read"
    return escaped(brief(text[: 4 * LONGEST_LINE], LONGEST_LINE))


def _text(error: BaseException) -> str:
    if isinstance(error, PrunekitError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _trace() -> str:
    try:
        text = traceback.format_exc()
    except BaseException:  # as in line_of
        return "no traceback can be read"
    return "\n".join(escaped(line) for line in text[-LONGEST_TRACE:].splitlines())
