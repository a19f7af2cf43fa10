"""How far a run is and how long it still takes, from what its tasks report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunekit.study.tasks import Task

FIRST_GUESS = 3.0
"""Seconds of work to have seen before a guess of the time left is worth telling."""


@dataclass
class _Way:
    """How far one task is: the fraction done, where it began, and when that was heard last."""

    cost: float
    fraction: float = 0.0
    begin: float | None = None
    heard: float = 0.0
    running: bool = False


class Pace:
    """The work done, and the time left at the mean pace so far.

    Work that an earlier run has done counts as done, but not for the pace; nor does the time in which a
    process starts and loads the data, before its task reports for the first time.
    """

    def __init__(
        self, tasks: Sequence[Task], workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ways = {task.name: _Way(task.cost) for task in tasks}
        self._workers = workers
        self._clock = clock
        self._work = 0.0
        self._seconds = 0.0
        self.started = clock()
        self.finished = 0
        self.failed = 0

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return len(self._ways)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self.started

    def begin(self, task: Task) -> None:
        """The task runs."""
        self._ways[task.name].running = True

    def hear(self, task: Task, fraction: float) -> None:
        """The task is this far; its first word says where it begins."""
        way, now = self._ways[task.name], self._clock()
        if way.begin is None:
            way.begin = fraction
        else:
            self._work += way.cost * max(fraction - way.fraction, 0.0)
            self._seconds += now - way.heard
        way.fraction, way.heard = fraction, now

    def end(self, task: Task, *, failed: bool) -> None:
        """The task has ended, or will not be begun."""
        way = self._ways[task.name]
        if way.running and not failed:
            self.hear(task, 1.0)
        way.fraction, way.running = 1.0, False
        self.finished += 1
        self.failed += failed

    def fraction(self, task: Task | None = None) -> float:
        """How far a task is, or the whole, in [0, 1]."""
        if task is not None:
            return self._ways[task.name].fraction
        whole = sum(way.cost for way in self._ways.values())
        return sum(way.cost * way.fraction for way in self._ways.values()) / whole if whole else 1.0

    def left(self) -> float | None:
        """Seconds until the end; None while it is too early to say.

        At least as long as the longest task, which cannot be shared among workers.
        """
        if self.finished == self.tasks:
            return 0.0
        if self._seconds < FIRST_GUESS or not self._work:
            return None
        rate = self._work / self._seconds
        lengths = [self._length(way, rate) for way in self._ways.values()]
        return max(sum(lengths) / self._workers, *lengths)

    def _length(self, way: _Way, rate: float) -> float:
        seconds = way.cost * (1 - way.fraction) / rate
        if way.running and way.begin is not None:
            seconds -= self._clock() - way.heard  # it has gone on since
        return max(seconds, 0.0)


def in_words(seconds: float | None) -> str:
    """A duration for a log line: `about 3 min`."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def in_digits(seconds: float | None) -> str:
    """A duration for a bar: `0:03:20`."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
