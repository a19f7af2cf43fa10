"""Progress of a study for a person: one bar for the whole, one for each task that runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prunekit.study.tasks import Failure, Task

log = logging.getLogger("prunekit.study")

SCALE = 1000
"""Bars count thousandths of the expected effort."""


class Bars:
    """Nested bars on a terminal, and a log line per finished task; a context manager and a `Watcher`."""

    def __init__(self, tasks: Sequence[Task], console: Console) -> None:
        self._costs = {task.name: task.cost for task in tasks}
        self._whole_cost = sum(self._costs.values()) or 1.0
        self._fractions = dict.fromkeys(self._costs, 0.0)
        self._rows: dict[str, TaskID] = {}
        self._done = 0
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=18),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
        )
        self._whole = self._progress.add_task(self._title(), total=SCALE)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, task: Task) -> None:
        """A row of its own."""
        self._rows[task.name] = self._progress.add_task(f"  {task.name[:30]:<30}", total=SCALE)

    def progressed(self, task: Task, fraction: float) -> None:
        """The task's bar and the bar of the whole."""
        self._fractions[task.name] = fraction
        if task.name in self._rows:
            self._progress.update(self._rows[task.name], completed=SCALE * fraction)
        self._update_whole()

    def finished(self, task: Task, seconds: float, failure: Failure | None) -> None:
        """The row goes, a log line stays."""
        self._fractions[task.name] = 1.0
        self._done += 1
        if task.name in self._rows:
            self._progress.remove_task(self._rows.pop(task.name))
        self._update_whole()
        if failure is None:
            log.info("%s: done in %.1f s", task.name, seconds)
        else:
            log.error("%s: failed: %s", task.name, failure.message)
            log.debug("%s", failure.trace)

    def _update_whole(self) -> None:
        done = sum(self._costs[name] * fraction for name, fraction in self._fractions.items())
        self._progress.update(
            self._whole, completed=SCALE * done / self._whole_cost, description=self._title()
        )

    def _title(self) -> str:
        return f"{f'{self._done} of {len(self._costs)} runs':<32}"
