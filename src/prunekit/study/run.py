"""Running a study: the networks, then the cells, then the tables and the report."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from rich.console import Console

from prunekit.errors import InputError, PrunekitError
from prunekit.files import write_json
from prunekit.study.describe import describe, describe_series
from prunekit.study.jobs import make_tasks, plan
from prunekit.study.layout import SERIES, Layout
from prunekit.study.lock import only_run
from prunekit.study.progress import watch
from prunekit.study.running import run_tasks
from prunekit.study.series import Series
from prunekit.study.spec import Study
from prunekit.study.stages import dataset
from prunekit.study.tables import write_tables
from prunekit.study.tasks import Failure, Task, Watcher

log = logging.getLogger(__name__)


class StudyError(PrunekitError):
    """Some cells of a study failed; the results of the others, and a report of them, are written."""


def run_study(
    study: Study | Series,
    out: Path | str,
    *,
    data_dir: Path | str | None = None,
    workers: int | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> Path:
    """Run what is not finished of a study, and write its tables and report.

    Args:
        study: what to compare.
        out: the folder of the results; an interrupted study goes on there.
        data_dir: where datasets lie.
        workers: processes; by default one per core.
        command: how a person repeats this, for the report.
        console: where progress is shown: bars on a terminal, else log lines.

    Returns:
        The path of the report; of a series, of the page that leads to the reports of its studies.

    Raises:
        InputError, DataError, ModelError: before the first network is trained; also if another run is at
            work in the folder, or a result there is damaged.
        OSError: if the folder cannot be written to.
        StudyError: if a cell failed; the results of all others are written.
    """
    if isinstance(study, Series):
        return _run_series(study, Path(out), data_dir, workers, command, console)
    layout = Layout(Path(out))
    workers = workers if workers is not None else os.cpu_count() or 1
    if workers < 1:
        raise InputError(f"workers = {workers}: at least one process is needed")
    layout.check()
    folder = None if data_dir is None else Path(data_dir)
    plans = plan(study, folder)
    with only_run(layout.root):
        layout.tidy()
        tasks = make_tasks(study, layout, folder, plans)
        write_json(layout.study, describe(study, dataset(study, folder).task, command))
        processes = min(workers, max(len(tasks), 1))
        with watch(tasks, processes, console or Console(stderr=True)) as watcher:
            failures = _run(study, layout, tasks, processes, watcher)
        write_tables(study, layout)
        if failures:
            raise StudyError(_summary(failures, _report_of_rest(layout)))
        return _report(layout)


def _run_series(
    series: Series,
    out: Path,
    data_dir: Path | str | None,
    workers: int | None,
    command: str | None,
    console: Console | None,
) -> Path:
    """Every study of a series in its own folder, then the page of all; a failure in one stops no other."""
    for label, study in series.studies.items():  # so that the last is not refused when the first has been run
        Layout(out / label).check()
        try:
            plan(study, None if data_dir is None else Path(data_dir))
        except PrunekitError as error:
            raise type(error)(f"{label}: {error}") from error
    about = describe_series(series, command)
    write_json(out / SERIES, about)
    failures: list[str] = []
    for label, study in series.studies.items():
        try:
            run_study(
                study,
                out / label,
                data_dir=data_dir,
                workers=workers,
                command=about["command"],
                console=console,
            )
        except StudyError as error:
            failures.append(f"{label}: {error}")
    if failures:
        raise StudyError("; ".join(failures))
    from prunekit.report import write_series_page  # as in _report

    return write_series_page(out)


def _run(study: Study, layout: Layout, tasks: list[Task], processes: int, watcher: Watcher) -> list[Failure]:
    try:
        return run_tasks(tasks, processes, watcher)
    except KeyboardInterrupt:
        write_tables(study, layout)  # so that `prunekit report` shows what there is so far
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
