"""Tasks with dependencies: what is ready, what failed, and what is given up with it."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prunekit.errors import PrunekitError, brief, escaped

LONGEST_LINE, LONGEST_TRACE = 2_000, 10_000
"""Characters that are kept of what an exception says, and of where it happened."""

Progress = Callable[[float], None]
"""Takes the fraction of a task that is done; its first call says where the task begins, 0 if afresh."""


@dataclass(frozen=True)
class Task:
    """Something to be done once others are done.

    Attributes:
        name: unique; shown to the person.
        run: a function that can be sent to another process; called as `run(*arguments, progress)`.
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
    """A task that did not succeed.

    Attributes:
        name: the task's.
        message: one line for the person.
        trace: where it happened, for the log.
        skipped: whether it was not even begun, because of another's failure.
        disk_full: whether no other task could write its results either.
    """

    name: str
    message: str
    trace: str = ""
    skipped: bool = False
    disk_full: bool = False

    @classmethod
    def of(cls, task: Task, error: BaseException) -> Failure:
        """The failure that an exception is; to be called while it is handled."""
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return cls(task.name, line_of(error), _trace(), disk_full=full)


class Watcher(Protocol):
    """Who is told how a run goes."""

    def started(self, task: Task) -> None:
        """The task runs."""

    def progressed(self, task: Task, fraction: float) -> None:
        """The task is this far, in [0, 1]."""

    def finished(self, task: Task, seconds: float, failure: Failure | None) -> None:
        """The task has ended, or will not be begun."""


class TaskQueue:
    """Which tasks are ready, under way and done."""

    def __init__(self, tasks: Sequence[Task], watcher: Watcher) -> None:
        names = {task.name for task in tasks}
        assert len(names) == len(tasks), "two tasks have the same name"
        assert all(names.issuperset(task.after) for task in tasks), "a task waits for one that is not there"
        self._waiting = list(tasks)
        self._watcher = watcher
        self._succeeded: set[str] = set()
        self.failures: list[Failure] = []

    def take(self) -> Task | None:
        """The first task that is ready, which is then under way; None if there is none at present."""
        for task in self._waiting:
            if self._succeeded.issuperset(task.after):
                self._waiting.remove(task)
                self._watcher.started(task)
                return task
        return None

    def settle(self, task: Task, seconds: float, failure: Failure | None) -> None:
        """A task that was under way has ended; what waits for one that failed is given up.

        After one that found the disk full everything is given up: hours of computing could not be kept.
        """
        self._watcher.finished(task, seconds, failure)
        if failure is None:
            self._succeeded.add(task.name)
            return
        self.failures.append(failure)
        for other in [other for other in self._waiting if failure.disk_full or task.name in other.after]:
            if other in self._waiting:  # else it was given up with one that it waits for
                self._waiting.remove(other)
                skipped = Failure(other.name, f"not run, because {task.name} failed", skipped=True)
                self.settle(other, 0.0, skipped)


def perform(task: Task, progress: Progress) -> Failure | None:
    """Run one task; what it raises becomes its failure, so that one failed cell does not lose the others."""
    try:
        task.run(*task.arguments, progress)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's score may do anything, also call exit()
        return Failure.of(task, error)
    return None


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
