"""Running a study: the networks, then the cells, then the tables and the report."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from rich.console import Console

from prunekit.digests import write_json_unless_same, write_json_with_digest
from prunekit.errors import InputError, PrunekitError
from prunekit.files import refuse_links
from prunekit.limits import check_out
from prunekit.study.describe import describe, describe_series
from prunekit.study.jobs import make_tasks, plan
from prunekit.study.layout import SERIES, Layout
from prunekit.study.lock import only_run
from prunekit.study.outputs import Results
from prunekit.study.progress import watch
from prunekit.study.running import run_tasks
from prunekit.study.series import Series
from prunekit.study.spec import Study
from prunekit.study.stages import dataset
from prunekit.study.tables import write_tables
from prunekit.study.tasks import Failure, Task, Watcher

MAX_WORKERS = 1_024
"""How many processes may work at a time."""

log = logging.getLogger(__name__)


class StudyError(PrunekitError):
    """Some cells of a study failed; the results of the others, and a report of them, are written."""


def run_study(
    study: Study | Series,
    out: Path | str,
    *,
    data_dir: Path | str | None = None,
    workers: int | None = None,
    cell_timeout: float | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> Path:
    """Run what is not finished of a study, and write its tables and report.

    Args:
        study: what to compare.
        out: the folder of the results; an interrupted study goes on there.
        data_dir: where datasets lie.
        workers: processes; by default one per core.
        cell_timeout: seconds after which a cell, or a training, is ended and counts as failed, besides the
            time that code and data take to load; no limit if None. With a limit there is a worker process
            also where there is only one.
        command: how a person repeats this, for the report.
        console: where progress is shown: bars on a terminal, else log lines.

    A result that is damaged is named in a warning, and what had it is done anew.

    Returns:
        The path of the report; of a series, of the page that leads to the reports of its studies.

    Raises:
        InputError, DataError, ModelError: before the first network is trained; also if another run is at
            work in the folder, or the description of a study there is damaged.
        OSError: if the folder cannot be written to.
        StudyError: if a cell failed; the results of all others are written.
    """
    if isinstance(study, Series):
        return _run_series(study, Path(out), data_dir, workers, cell_timeout, command, console)
    layout = Layout(check_out(Path(out)))
    workers = workers if workers is not None else min(os.cpu_count() or 1, MAX_WORKERS)
    if not 1 <= workers <= MAX_WORKERS:
        raise InputError(f"workers = {workers}: from 1 to {MAX_WORKERS:,} processes are possible")
    _check_timeout(cell_timeout)
    layout.check()
    folder = None if data_dir is None else Path(data_dir)
    plans = plan(study, folder)
    with only_run(layout.root):
        layout.tidy()
        read = Results()
        tasks = make_tasks(study, layout, folder, plans, read)
        write_json_unless_same(layout.study, describe(study, dataset(study, folder).task, command))
        processes = min(workers, max(len(tasks), 1))
        with watch(tasks, processes, console or Console(stderr=True)) as watcher:
            failures = _run(study, layout, tasks, processes, watcher, cell_timeout, read)
        write_tables(study, layout, read)
        if failures:
            raise StudyError(_summary(failures, _report_of_rest(layout)))
        return _report(layout)


def _run_series(
    series: Series,
    out: Path,
    data_dir: Path | str | None,
    workers: int | None,
    cell_timeout: float | None,
    command: str | None,
    console: Console | None,
) -> Path:
    """Every study of a series in its own folder, then the page of all; a failure in one stops no other."""
    check_out(out)
    _check_timeout(cell_timeout)
    refuse_links(out, series.studies)
    for label, study in series.studies.items():  # so that the last is not refused when the first has been run
        Layout(out / label).check()
        try:
            plan(study, None if data_dir is None else Path(data_dir))
        except PrunekitError as error:
            raise type(error)(f"{label}: {error}") from error
    about = describe_series(series, command)
    write_json_with_digest(out / SERIES, about)
    failures: list[str] = []
    for label, study in series.studies.items():
        try:
            run_study(
                study,
                out / label,
                data_dir=data_dir,
                workers=workers,
                cell_timeout=cell_timeout,
                command=about["command"],
                console=console,
            )
        except StudyError as error:
            failures.append(f"{label}: {error}")
    if failures:
        raise StudyError("; ".join(failures))
    from prunekit.report import write_series_page  # as in _report

    return write_series_page(out)


def _check_timeout(seconds: float | None) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
        raise InputError(f"cell_timeout = {seconds!r}: a number of seconds above 0 is needed")


def _run(
    study: Study,
    layout: Layout,
    tasks: list[Task],
    processes: int,
    watcher: Watcher,
    cell_timeout: float | None,
    read: Results,
) -> list[Failure]:
    try:
        return run_tasks(tasks, processes, watcher, cell_timeout)
    except KeyboardInterrupt:
        write_tables(study, layout, read)  # so that `prunekit report` shows what there is so far
        raise


def _report(layout: Layout) -> Path:
    from prunekit.report import write_report  # matplotlib takes long to import, and no worker needs it

    return write_report(layout.root)


def _report_of_rest(layout: Layout) -> Path:
    """Where to look at what succeeded: the report, or the table if there is too little for a report."""
    try:
        return _report(layout)
    except PrunekitError as error:
        log.debug("no report: %s", error)
        return layout.results


def _summary(failures: list[Failure], where: Path) -> str:
    first = failures[0]
    skipped = sum(failure.skipped for failure in failures)
    others = len(failures) - skipped - 1
    counts = [f"{others} more failed"] * bool(others) + [f"{skipped} could not be run"] * bool(skipped)
    also = f" ({', '.join(counts)})" if counts else ""
    return f"{first.name}: failed: {first.message}{also}; what succeeded is in {where}"
