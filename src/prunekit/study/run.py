"""Running of a study: its plans, the jobs that are still to be done, then the tables and the report."""

from __future__ import annotations

import errno
import logging
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from prunekit import __version__
from prunekit.batches import Batches, as_batches
from prunekit.data import load
from prunekit.digests import read_json_with_digest, write_json_unless_same, write_json_with_digest
from prunekit.errors import DataError, InputError, ModelError, PrunekitError, naming
from prunekit.extras import check_installed
from prunekit.files import check_out, remove
from prunekit.folder_lock import only_run
from prunekit.graph import chain_of
from prunekit.pruning.calibration import check_takes
from prunekit.recipe import Plan
from prunekit.study.jobs import Executor, Failure, Job
from prunekit.study.layout import Layout, Results, discard, is_finished, write_tables
from prunekit.study.pool import LocalPool
from prunekit.study.progress import Display
from prunekit.study.remote import RemoteFolder, is_remote
from prunekit.study.spec import Cell, Study, StudySuite
from prunekit.study.stages import (
    build,
    dataset,
    run_cell,
    train_network,
    write_units,
)
from prunekit.study_files import FORMAT, RESULTS_CSV, STUDY_JSON, SUITE_JSON, UNITS_JSON, refuse_links
from prunekit.task import PLAIN

log = logging.getLogger(__name__)

OVERHEAD = 50
"""What loading, scoring and measuring of one step cost, in optimizer steps: a guess, for the time left."""

Plans = dict[str, Plan]
"""The plan of every cell, by the cell's key."""


def plan(study: Study, data_dir: Path | None) -> Plans:
    """The plan of every cell.

    Raises:
        InputError, DataError, ModelError: whatever a cell could not be run with, naming the method, or what
            keeps the network from having figures of units.
    """
    data = dataset(study, data_dir)
    model = build(study, data, seed=0)
    check_takes(model, study.model.name, data.test.inputs[:2])
    if study.unit_figures is not None:
        with naming("unit_figures"):
            chain = chain_of(model, data.test.inputs[:2])
        if not chain.groups:
            raise ModelError("unit_figures: the network has no units that could be removed")
    batches = as_batches(data)
    few, teacher = batches.first(2), None
    if study.teachers is not None:
        with naming("teacher"):
            teacher = build(study.teachers, data, seed=0)
            check_takes(teacher, study.teachers.model.name, data.test.inputs[:2])
    plans = {}
    for cell in study.cells:
        with naming(f"method {cell.name!r}"):
            plans[cell.key] = _plan_cell(cell, study, model, batches, data.test.inputs[:2])
            part = cell.recipe.teacher
            if part is not None and part.of == "given" and teacher is not None and few is not None:
                part.check_teacher(model, teacher, few, PLAIN)
    return plans


def _plan_cell(cell: Cell, study: Study, model: nn.Module, data: Batches, example: Tensor) -> Plan:
    retrain = cell.recipe.retrain
    steps = study.training.length(data)
    if retrain.checkpoint is not None and retrain.checkpoint > steps:
        raise InputError(
            f"retrain {retrain.name!r} goes back to step {retrain.checkpoint}, "
            f"but the training has only {steps} steps"
        )
    if retrain.changes:
        retrain.check(model, {step: {} for step in study.checkpoints})
    return cell.recipe.plan(model, example)


def make_jobs(study: Study, layout: Layout, data_dir: Path | None, plans: Plans, read: Results) -> list[Job]:
    """The networks and cells that are not finished, each cell after its network.

    What is finished but damaged is said, removed, and a job like the others. To be called by the holder of
    the folder's lock.

    Args:
        study: the study.
        layout: of its folder.
        data_dir: where datasets lie.
        plans: those of the cells.
        read: keeps what is read of the folder.

    Raises:
        OSError: if something cannot be read that may be whole, or a damaged file cannot be removed.
    """
    data = as_batches(dataset(study, data_dir))
    networks: dict[Path, Job] = {}
    trained = {"training": study} | ({} if study.teachers is None else {"teacher": study.teachers})
    for called, each in trained.items():
        for seed in range(study.seeds):
            job = Job(
                f"{called} of seed {seed}",
                train_network,
                (each, seed, layout, data_dir),
                cost=float(OVERHEAD + each.training.length(data)),
                writes=(layout.name(layout.network(each, seed)),),
            )
            # a teacher may be the very network that is pruned
            networks.setdefault(layout.network(each, seed), job)
    cells: dict[Path, Job] = {}
    for seed in range(study.seeds):
        for cell in study.cells:
            teachers = study.teachers_of(cell.recipe)
            needs = [study] if teachers is None else [study, teachers]
            others = (layout.cell(each, seed) for each in (cell.random_of, cell.start) if each is not None)
            reads = [*(layout.network(each, seed) for each in needs), *others]
            job = Job(
                f"{cell.name}, seed {seed}",
                run_cell,
                (study, cell.label, cell.key, seed, layout, data_dir),
                after=tuple(networks[layout.network(each, seed)].name for each in needs),
                cost=_cost(cell, plans[cell.key], data),
                reads=tuple(map(layout.name, reads)),
                writes=(layout.name(layout.cell(cell, seed)),),
            )
            # labels that differ in punctuation share the folder of an equal recipe
            cells.setdefault(layout.cell(cell, seed), job)
        for cell in study.cells:
            for before in (cell.random_of, cell.start):
                if before is not None:
                    folder, other = layout.cell(cell, seed), layout.cell(before, seed)
                    cells[folder] = replace(cells[folder], after=(*cells[folder].after, cells[other].name))
    jobs = [job for folder, job in networks.items() if not _is_done(folder, job.name, read.network)]
    jobs += [job for folder, job in cells.items() if not _is_done(folder, job.name, read.cell)]
    if not _has_units(study, layout):
        jobs.append(
            Job(
                "figures of units",
                write_units,
                (study, layout, data_dir),
                after=(networks[layout.network(study, 0)].name,),
                cost=float(10 * OVERHEAD),
                reads=(layout.name(layout.network(study, 0)),),
                writes=(UNITS_JSON,),
            )
        )
    to_do = {job.name for job in jobs}
    return [replace(job, after=tuple(to_do.intersection(job.after))) for job in jobs]


def _has_units(study: Study, layout: Layout) -> bool:
    """Whether nothing is to be done for figures of units; what is damaged or of another study is removed."""
    path = layout.root / UNITS_JSON
    if study.unit_figures is not None and path.exists():
        try:
            if read_json_with_digest(path).get("key") == study.units_key:
                return True
        except DataError as error:
            log.warning("%s; done anew", error)
    remove(path)
    return study.unit_figures is None


def _is_done(folder: Path, name: str, read: Callable[[Path], object]) -> bool:
    """Whether a stage is finished and whole; one that is damaged is removed, for nobody to use it."""
    if not is_finished(folder):
        return False
    try:
        read(folder)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno not in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            raise cause from None  # it may be whole: that it cannot be read now is no reason to remove it
        log.warning("%s; done anew: %s", error, name)
        discard(folder)
        return False
    return True


def _cost(cell: Cell, plan: Plan, data: Batches) -> float:
    retrain = cell.recipe.retrain
    length = 0 if retrain.plan is None else max(retrain.plan.length(data) - retrain.start, 0)
    warm_up = sum(training.length(data) for training in cell.recipe.warm_ups.values())
    few_values = sum(training.length(data) for training in cell.recipe.quantize.plans)
    steps, every = len(plan.steps), cell.recipe.retrain_every
    *_, trained = retrain.part(0, -(-steps // every), {}).span(length)
    return float(OVERHEAD * steps + trained + warm_up + few_values)


class StudyError(PrunekitError):
    """Some cells of a study failed; the results of the others, and a report of them, are written.

    Attributes:
        failures: what failed and what could not be run because of that, in order; of a suite with its
            study's label before the names.
    """

    def __init__(self, message: str, failures: Sequence[Failure]) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


def run_study(
    study: Study | StudySuite,
    out: Path | str,
    *,
    data_dir: Path | str | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    cell_timeout: float | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> Path:
    """Run what is not finished of a study, and write its tables and report.

    Args:
        study: what to compare.
        out: the folder of the results; an interrupted study goes on there. A text with `://` names one that
            fsspec reaches, such as `s3://bucket/study`: every job fetches what it needs from there and sends
            what it writes, so that workers need no common disk; what was measured is copied to this machine.
            Nothing keeps a second run on another machine out of it.
        data_dir: where datasets lie.
        workers: processes of this machine; by default one per core.
        executor: who runs the cells instead, such as `RayCluster()`; the results are the same.
        cell_timeout: seconds after which a cell, or a training, is ended and counts as failed, besides the
            time that code and data take to load; no limit if None. With a limit there is a worker process
            also where there is only one.
        command: how a person repeats this, for the report.
        console: where progress is shown: bars on a terminal, else log lines.

    A result that is damaged is named in a warning, and what had it is done anew.

    Returns:
        The path of the report; of a suite, of the page that leads to the reports of its studies. Of results
        elsewhere, the path of the copy on this machine.

    Raises:
        InputError, DataError, ModelError: before the first network is trained; also if another run is at
            work in the folder, or the description of a study there is damaged.
        OSError: if the folder cannot be written to.
        StudyError: if a cell failed; the results of all others are written.
    """
    _check_timeout(cell_timeout)
    check_installed("A study", "matplotlib", "jinja2", "scipy")
    if executor is not None and workers is not None:
        raise InputError("workers are processes of this machine: give them, or an executor")
    runs = LocalPool(workers) if executor is None else executor
    remote = RemoteFolder(str(out)) if is_remote(out) else None
    here = Path(out) if remote is None else remote.copy
    with runs.connected():
        if remote is not None:
            remote.check()
        data = None if data_dir is None else Path(data_dir)
        options = _Options(data, runs, cell_timeout, console)
        if isinstance(study, StudySuite):
            return _run_suite(study, here, remote, options, command)
        return _run(study, here, remote, options, command)


@dataclass(frozen=True)
class _Options:
    """How studies are run, whatever they are; the attributes are arguments of `run_study`."""

    data_dir: Path | None
    executor: Executor
    cell_timeout: float | None
    console: Console | None


def _run(
    study: Study, out: Path, remote: RemoteFolder | None, options: _Options, command: str | None
) -> Path:
    """Run a study.

    Args:
        study: what to compare.
        out: the folder of the results, or of the copy of what was measured.
        remote: the folder of the results, if it is on another file system.
        options: see there.
        command: how a person repeats this.
    """
    layout = Layout(check_out(out))
    layout.check()
    data_dir = options.data_dir
    if study.dataset.is_own:
        study = study.pinned(load(study.dataset, data_dir).digest())  # never from what a process keeps
    plans = plan(study, data_dir)
    with only_run(layout.root):
        layout.tidy()
        read = Results() if remote is None else Results(remote.fetch_results(layout.root))
        layout.check()
        jobs = make_jobs(study, layout, data_dir, plans, read)
        write_json_unless_same(
            layout.root / STUDY_JSON, describe(study, dataset(study, data_dir).task, command)
        )
        to_run = jobs if remote is None else [remote.job(job) for job in jobs]
        try:
            console = options.console or Console(stderr=True)
            with Display(jobs, options.executor.slots(len(jobs)), console) as watcher:
                failures = options.executor.run(to_run, watcher, options.cell_timeout)
        except KeyboardInterrupt:
            _write_tables(study, layout, remote, read)  # so that `prunekit report` shows what there is so far
            raise
        _write_tables(study, layout, remote, read)
        report = _report_of_rest(layout) if failures else _report(layout)
        if remote is not None:
            remote.send_tops(layout.root)
        if failures:
            raise StudyError(_summary(failures, report), failures)
        return report


def _write_tables(study: Study, layout: Layout, remote: RemoteFolder | None, read: Results) -> None:
    write_tables(study, layout, read if remote is None else Results(remote.fetch_results(layout.root)))
    if remote is not None:
        remote.send_tops(layout.root)


def _run_suite(
    suite: StudySuite, out: Path, remote: RemoteFolder | None, options: _Options, command: str | None
) -> Path:
    """Every study of a suite in its own folder, then the page of all; a failure in one stops no other."""
    check_out(out)
    refuse_links(out, suite.studies)
    for label, study in suite.studies.items():  # so that the last is not refused when the first has been run
        Layout(out / label).check()
        with naming(label):
            plan(study, options.data_dir)
    about = describe_suite(suite, command)
    write_json_with_digest(out / SUITE_JSON, about)
    messages: list[str] = []
    failures: list[Failure] = []
    for label, study in suite.studies.items():
        try:
            _run(study, out / label, None if remote is None else remote / label, options, about["command"])
        except StudyError as error:
            messages.append(f"{label}: {error}")
            failures += [replace(each, name=f"{label}: {each.name}") for each in error.failures]
    if failures:
        raise StudyError("; ".join(messages), failures)
    from prunekit.report import write_suite_page  # as in _report

    page = write_suite_page(out)
    if remote is not None:
        remote.send_tops(out)
    return page


def describe(study: Study, task: str, command: str | None) -> dict[str, Any]:
    """The content of study.json.

    Args:
        study: the study.
        task: `classification` or `regression`.
        command: how a person repeats it.
    """
    settings = study.to_dict()
    common = ("name", "question", "expected", "dataset", "model", "training", "seeds", "splits", "controls")
    return {
        "format": FORMAT,
        "title": study.title or study.name,
        **{key: settings[key] for key in common},
        "methods": {
            label: {
                "recipe": [cell.recipe.to_dict() for cell in study.cells if cell.label == label],
                **note,
            }
            for label, note in study.notes().items()
        },
        "study": settings,
        "environment": {
            "prunekit": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "command": command or f"prunekit compare {study.name} --seeds {study.seeds}",
        "primary": "test_accuracy" if task == "classification" else "test_mse",
    }


def describe_suite(suite: StudySuite, command: str | None) -> dict[str, Any]:
    """The content of suite.json."""
    return {
        "format": FORMAT,
        "name": suite.name,
        "title": suite.title,
        "question": suite.question,
        "expected": suite.expected,
        "variants": list(suite.studies),
        "command": command or f"prunekit compare {suite.name}",
    }


def _check_timeout(seconds: float | None) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
        raise InputError(f"cell_timeout = {seconds!r}: a number of seconds above 0 is needed")


def _report(layout: Layout) -> Path:
    from prunekit.report import write_report  # matplotlib takes long to import, and no worker needs it

    return write_report(layout.root)


def _report_of_rest(layout: Layout) -> Path:
    """Where to look at what succeeded: the report, or the table if there is too little for a report."""
    try:
        return _report(layout)
    except PrunekitError as error:
        log.debug("no report: %s", error)
        return layout.root / RESULTS_CSV


def _summary(failures: list[Failure], where: Path) -> str:
    first = failures[0]
    skipped = sum(failure.skipped for failure in failures)
    others = len(failures) - skipped - 1
    counts = [f"{others} more failed"] * bool(others) + [f"{skipped} could not be run"] * bool(skipped)
    also = f" ({', '.join(counts)})" if counts else ""
    return f"{first.name}: failed: {first.message}{also}; what succeeded is in {where}"
