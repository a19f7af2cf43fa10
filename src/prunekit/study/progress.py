"""Progress of a study for a person: nested bars on a terminal, now and then a line in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Task as Row
from rich.text import Text

from prunekit.study.pace import Pace, in_digits, in_words
from prunekit.study.tasks import Failure, Task, Watcher

log = logging.getLogger("prunekit.study")

EVERY = 15.0
"""Seconds between two lines of a log that no terminal shows."""

WIDTH = 36
"""Of the names beside the bars: all fits a terminal of 80 columns."""


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
