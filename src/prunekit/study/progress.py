"""Progress of a study: how far it is and the time left, in bars on a terminal or now and then a log line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Task as Row
from rich.text import Text

from prunekit.study.jobs import Failure, Job, Watcher

FIRST_GUESS = 3.0
"""Seconds of work to have seen before a guess of the time left is worth telling."""

FIRST_WORDS = 5
"""Words of jobs to have heard before, unless they said that a hundredth of the work is done: the first steps
of a process are many times as slow as all others."""

log = logging.getLogger("prunekit.study")

EVERY = 15.0
"""Seconds between two lines of a log that no terminal shows."""

WIDTH = 36
"""Of the names beside the bars: all fits a terminal of 80 columns."""


@dataclass
class _JobProgress:
    """How far one job is: the fraction done, where it began, and when that was heard last."""

    cost: float
    fraction: float = 0.0
    begin: float | None = None
    heard: float = 0.0
    running: bool = False


class ETA(Watcher):
    """The work done, and the time left at the mean pace so far.

    Work that an earlier run has done counts as done, but not for the pace; nor does the time in which a
    process starts and loads the data, before its job reports for the first time.
    """

    def __init__(
        self, jobs: Sequence[Job], workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress_of = {job.name: _JobProgress(job.cost) for job in jobs}
        self._workers = workers
        self._clock = clock
        self._work = 0.0
        self._seconds = 0.0
        self._words = 0
        self._began = clock()
        self.jobs = len(jobs)
        self.ended = 0
        self.failed = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    def started(self, job: Job) -> None:
        """The job runs."""
        self._progress_of[job.name].running = True

    def progressed(self, job: Job, fraction: float) -> None:
        """The job is this far; its first word says where it begins."""
        self._hear(self._progress_of[job.name], fraction)

    def _hear(self, record: _JobProgress, fraction: float) -> None:
        now = self._clock()
        if record.begin is None:
            record.begin = fraction
        else:
            self._work += record.cost * max(fraction - record.fraction, 0.0)
            self._seconds += now - record.heard
            self._words += 1
        record.fraction, record.heard = fraction, now

    def finished(self, job: Job, seconds: float, failure: Failure | None) -> None:
        """The job has ended, or will not be begun."""
        record = self._progress_of[job.name]
        if record.running and failure is None:
            self._hear(record, 1.0)
        record.fraction, record.running = 1.0, False
        self.ended += 1
        self.failed += failure is not None

    def lost(self, job: Job, failure: Failure) -> None:
        """The job waits to be started again, from where it had kept what it did."""
        record = self._progress_of[job.name]
        record.begin, record.running = None, False

    def fraction(self) -> float:
        """How far the whole is, in [0, 1]."""
        records = self._progress_of.values()
        whole = sum(record.cost for record in records)
        return sum(record.cost * record.fraction for record in records) / whole if whole else 1.0

    def left(self) -> float | None:
        """Seconds until the end; None while it is too early to say.

        At least as long as the longest job, which cannot be shared among workers.
        """
        if self.ended == self.jobs:
            return 0.0
        whole = sum(record.cost for record in self._progress_of.values())
        few = self._words < FIRST_WORDS and self._work < 0.01 * whole
        if self._seconds < FIRST_GUESS or few or not self._work:
            return None
        rate = self._work / self._seconds
        lengths = [self._length(record, rate) for record in self._progress_of.values()]
        return max(sum(lengths) / self._workers, *lengths)

    def _length(self, record: _JobProgress, rate: float) -> float:
        seconds = record.cost * (1 - record.fraction) / rate
        if record.running and record.begin is not None:
            seconds -= self._clock() - record.heard  # it has gone on since
        return max(seconds, 0.0)


class Display(ETA):
    """What a person sees of a run, a context manager.

    On a terminal one bar for the whole with the time left, and one for each job that runs; else a log line
    every so often. What fails is named at once.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: int,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(jobs, workers, clock)
        self._in_lines = not console.is_terminal and len(jobs) > 0
        self._last_line = clock()
        self._rows: dict[str, TaskID] = {}
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            _Times(self),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._bars.add_task(f"{self._count():<{WIDTH}}", total=1.0, whole=True)

    def __enter__(self) -> Self:
        self._bars.start()
        if self._in_lines:
            log.info("%d runs to do", self.jobs)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bars.stop()
        if self._in_lines and kind is None:
            log.info("%s, in %s", self._count(), format_duration(self.elapsed).removeprefix("about "))

    def started(self, job: Job) -> None:
        """A row of its own."""
        super().started(job)
        self._rows[job.name] = self._bars.add_task(f"  {_shortened(job.name)}", total=1.0, whole=False)

    def progressed(self, job: Job, fraction: float) -> None:
        """The job's bar, and the whole."""
        super().progressed(job, fraction)
        self._bars.update(self._rows[job.name], completed=fraction)
        self._show_whole()

    def finished(self, job: Job, seconds: float, failure: Failure | None) -> None:
        """The row goes; a failure is told."""
        super().finished(job, seconds, failure)
        if failure is None:
            log.debug("%s: done in %.1f s", job.name, seconds)
        elif failure.skipped:
            log.debug("%s: %s", job.name, failure.message)
        else:
            log.error("%s: failed: %s", job.name, failure.message)
            log.debug("%s", failure.trace)
        if job.name in self._rows:
            self._bars.remove_task(self._rows.pop(job.name))
        self._show_whole()

    def lost(self, job: Job, failure: Failure) -> None:
        """The row goes, until the job is started again."""
        super().lost(job, failure)
        self._bars.remove_task(self._rows.pop(job.name))

    def _show_whole(self) -> None:
        """In its bar, or in a line if the last one is long ago."""
        if not self._in_lines:
            title = f"{self._count():<{WIDTH}}"
            self._bars.update(self._whole, completed=self.fraction(), description=title)
        elif self._clock() - self._last_line >= EVERY and self.ended < self.jobs:
            self._last_line = self._clock()
            left = format_duration(self.left())
            log.info("%s (%.0f %%), %s left", self._count(), 100 * self.fraction(), left)

    def _count(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.ended} of {self.jobs} runs done{failed}"


class _Times(ProgressColumn):
    """Beside the whole: the time since the beginning, and the time left; computed anew for each frame."""

    def __init__(self, eta: ETA) -> None:
        super().__init__()
        self._eta = eta

    def render(self, task: Row) -> RenderableType:
        if not task.fields["whole"]:
            return Text("")
        return Text(f"{format_clock(self._eta.elapsed)}, left {format_clock(self._eta.left())}", style="dim")


def format_duration(seconds: float | None) -> str:
    """A duration for a log line: `about 3 min`."""
    if seconds is None:
        return "an unknown time"
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


def _shortened(name: str, width: int = WIDTH - 2) -> str:
    """The name on so many columns; what is too long loses its middle, because both ends tell it apart."""
    if len(name) <= width:
        return name
    end = width // 2
    return f"{name[: width - end - 1]}…{name[-end:]}"
