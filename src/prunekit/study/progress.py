"""Progress of a study: how far it is and the time left, in bars on a terminal or now and then a log line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Task as Row
from rich.text import Text

from prunekit.study.tasks import Failure, Task, Watcher

FIRST_GUESS = 3.0
"""Seconds of work to have seen before a guess of the time left is worth telling."""

log = logging.getLogger("prunekit.study")

EVERY = 15.0
"""Seconds between two lines of a log that no terminal shows."""

WIDTH = 36
"""Of the names beside the bars: all fits a terminal of 80 columns."""


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


def watch(tasks: Sequence[Task], workers: int, console: Console) -> Bars | Lines:
    """Bars where there is a terminal, else log lines."""
    pace = Pace(tasks, workers)
    return Bars(pace, console) if console.is_terminal else Lines(pace)


class _Told(Watcher, AbstractContextManager["_Told"]):
    """What bars and lines have in common: both keep a pace, and name what failed at once."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def started(self, task: Task) -> None:
        self._pace.begin(task)

    def progressed(self, task: Task, fraction: float) -> None:
        self._pace.hear(task, fraction)

    def finished(self, task: Task, seconds: float, failure: Failure | None) -> None:
        self._pace.end(task, failed=failure is not None)
        if failure is None:
            log.debug("%s: done in %.1f s", task.name, seconds)
        elif failure.skipped:
            log.debug("%s: %s", task.name, failure.message)
        else:
            log.error("%s: failed: %s", task.name, failure.message)
            log.debug("%s", failure.trace)

    def _count(self) -> str:
        failed = f", {self._pace.failed} failed" if self._pace.failed else ""
        return f"{self._pace.finished} of {self._pace.tasks} runs done{failed}"


class Lines(_Told):
    """A log line every so often: the number done of all and the time left; a context manager."""

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(pace)
        self._clock = clock
        self._last = clock()

    def __enter__(self) -> Lines:
        if self._pace.tasks:
            log.info("%d runs to do", self._pace.tasks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pace.tasks and kind is None:
            log.info("%s, in %s", self._count(), in_words(self._pace.elapsed).removeprefix("about "))

    def progressed(self, task: Task, fraction: float) -> None:
        """Tell it, if the last line is long ago."""
        super().progressed(task, fraction)
        self._tell()

    def finished(self, task: Task, seconds: float, failure: Failure | None) -> None:
        """Tell it, if the last line is long ago; a failure at once."""
        super().finished(task, seconds, failure)
        self._tell()

    def _tell(self) -> None:
        if self._clock() - self._last < EVERY or self._pace.finished == self._pace.tasks:
            return
        self._last = self._clock()
        log.info(
            "%s (%.0f %%), %s left",
            self._count(),
            100 * self._pace.fraction(),
            in_words(self._pace.left()),
        )


class Bars(_Told):
    """One bar for the whole with the time left, one for each task that runs; a context manager."""

    def __init__(self, pace: Pace, console: Console) -> None:
        super().__init__(pace)
        self._rows: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            _Times(pace),
            console=console,
            transient=True,
        )
        self._whole = self._progress.add_task(self._title(), total=1.0, whole=True)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, task: Task) -> None:
        """A row of its own."""
        super().started(task)
        self._rows[task.name] = self._progress.add_task(f"  {_shortened(task.name)}", total=1.0, whole=False)

    def progressed(self, task: Task, fraction: float) -> None:
        """The task's bar and the bar of the whole."""
        super().progressed(task, fraction)
        self._progress.update(self._rows[task.name], completed=fraction)
        self._update_whole()

    def finished(self, task: Task, seconds: float, failure: Failure | None) -> None:
        """The row goes."""
        super().finished(task, seconds, failure)
        if task.name in self._rows:
            self._progress.remove_task(self._rows.pop(task.name))
        self._update_whole()

    def _update_whole(self) -> None:
        self._progress.update(self._whole, completed=self._pace.fraction(), description=self._title())

    def _title(self) -> str:
        return f"{self._count():<{WIDTH}}"


class _Times(ProgressColumn):
    """Beside the whole: the time since the beginning, and the time left; computed anew for each frame."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Row) -> RenderableType:
        if not task.fields["whole"]:
            return Text("")
        return Text(f"{in_digits(self._pace.elapsed)}, left {in_digits(self._pace.left())}", style="dim")


def _shortened(name: str, width: int = WIDTH - 2) -> str:
    """The name on so many columns; what is too long loses its middle, because both ends tell it apart."""
    if len(name) <= width:
        return name
    end = width // 2
    return f"{name[: width - end - 1]}…{name[-end:]}"
