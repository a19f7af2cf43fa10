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
class _TaskProgress:
    """How far one task is: the fraction done, where it began, and when that was heard last."""

    cost: float
    fraction: float = 0.0
    begin: float | None = None
    heard: float = 0.0
    running: bool = False


class ETA:
    """The work done, and the time left at the mean pace so far.

    Work that an earlier run has done counts as done, but not for the pace; nor does the time in which a
    process starts and loads the data, before its task reports for the first time.
    """

    def __init__(
        self, tasks: Sequence[Task], workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress_of = {task.name: _TaskProgress(task.cost) for task in tasks}
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
        return len(self._progress_of)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self.started

    def begin(self, task: Task) -> None:
        """The task runs."""
        self._progress_of[task.name].running = True

    def hear(self, task: Task, fraction: float) -> None:
        """The task is this far; its first word says where it begins."""
        record, now = self._progress_of[task.name], self._clock()
        if record.begin is None:
            record.begin = fraction
        else:
            self._work += record.cost * max(fraction - record.fraction, 0.0)
            self._seconds += now - record.heard
        record.fraction, record.heard = fraction, now

    def end(self, task: Task, *, failed: bool) -> None:
        """The task has ended, or will not be begun."""
        record = self._progress_of[task.name]
        if record.running and not failed:
            self.hear(task, 1.0)
        record.fraction, record.running = 1.0, False
        self.finished += 1
        self.failed += failed

    def fraction(self, task: Task | None = None) -> float:
        """How far a task is, or the whole, in [0, 1]."""
        if task is not None:
            return self._progress_of[task.name].fraction
        whole = sum(record.cost for record in self._progress_of.values())
        return (
            sum(record.cost * record.fraction for record in self._progress_of.values()) / whole
            if whole
            else 1.0
        )

    def left(self) -> float | None:
        """Seconds until the end; None while it is too early to say.

        At least as long as the longest task, which cannot be shared among workers.
        """
        if self.finished == self.tasks:
            return 0.0
        if self._seconds < FIRST_GUESS or not self._work:
            return None
        rate = self._work / self._seconds
        lengths = [self._length(record, rate) for record in self._progress_of.values()]
        return max(sum(lengths) / self._workers, *lengths)

    def _length(self, record: _TaskProgress, rate: float) -> float:
        seconds = record.cost * (1 - record.fraction) / rate
        if record.running and record.begin is not None:
            seconds -= self._clock() - record.heard  # it has gone on since
        return max(seconds, 0.0)


def format_duration(seconds: float | None) -> str:
    """A duration for a log line: `about 3 min`."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def format_clock(seconds: float | None) -> str:
    """A duration for a bar: `0:03:20`."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def watch(tasks: Sequence[Task], workers: int, console: Console) -> Bars | Lines:
    """Bars where there is a terminal, else log lines."""
    eta = ETA(tasks, workers)
    return Bars(eta, console) if console.is_terminal else Lines(eta)


class _Reporter(Watcher, AbstractContextManager["_Reporter"]):
    """What bars and lines have in common: both keep an ETA, and name what failed at once."""

    def __init__(self, eta: ETA) -> None:
        self._eta = eta

    def started(self, task: Task) -> None:
        self._eta.begin(task)

    def progressed(self, task: Task, fraction: float) -> None:
        self._eta.hear(task, fraction)

    def finished(self, task: Task, seconds: float, failure: Failure | None) -> None:
        self._eta.end(task, failed=failure is not None)
        if failure is None:
            log.debug("%s: done in %.1f s", task.name, seconds)
        elif failure.skipped:
            log.debug("%s: %s", task.name, failure.message)
        else:
            log.error("%s: failed: %s", task.name, failure.message)
            log.debug("%s", failure.trace)

    def _count(self) -> str:
        failed = f", {self._eta.failed} failed" if self._eta.failed else ""
        return f"{self._eta.finished} of {self._eta.tasks} runs done{failed}"


class Lines(_Reporter):
    """A log line every so often: the number done of all and the time left; a context manager."""

    def __init__(self, eta: ETA, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(eta)
        self._clock = clock
        self._last = clock()

    def __enter__(self) -> Lines:
        if self._eta.tasks:
            log.info("%d runs to do", self._eta.tasks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._eta.tasks and kind is None:
            log.info("%s, in %s", self._count(), format_duration(self._eta.elapsed).removeprefix("about "))

    def progressed(self, task: Task, fraction: float) -> None:
        """Tell it, if the last line is long ago."""
        super().progressed(task, fraction)
        self._tell()

    def finished(self, task: Task, seconds: float, failure: Failure | None) -> None:
        """Tell it, if the last line is long ago; a failure at once."""
        super().finished(task, seconds, failure)
        self._tell()

    def _tell(self) -> None:
        if self._clock() - self._last < EVERY or self._eta.finished == self._eta.tasks:
            return
        self._last = self._clock()
        log.info(
            "%s (%.0f %%), %s left",
            self._count(),
            100 * self._eta.fraction(),
            format_duration(self._eta.left()),
        )


class Bars(_Reporter):
    """One bar for the whole with the time left, one for each task that runs; a context manager."""

    def __init__(self, eta: ETA, console: Console) -> None:
        super().__init__(eta)
        self._rows: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            _Times(eta),
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
        self._progress.update(self._whole, completed=self._eta.fraction(), description=self._title())

    def _title(self) -> str:
        return f"{self._count():<{WIDTH}}"


class _Times(ProgressColumn):
    """Beside the whole: the time since the beginning, and the time left; computed anew for each frame."""

    def __init__(self, eta: ETA) -> None:
        super().__init__()
        self._eta = eta

    def render(self, task: Row) -> RenderableType:
        if not task.fields["whole"]:
            return Text("")
        return Text(f"{format_clock(self._eta.elapsed)}, left {format_clock(self._eta.left())}", style="dim")


def _shortened(name: str, width: int = WIDTH - 2) -> str:
    """The name on so many columns; what is too long loses its middle, because both ends tell it apart."""
    if len(name) <= width:
        return name
    end = width // 2
    return f"{name[: width - end - 1]}…{name[-end:]}"
