"""Running a study: the networks, then the cells, then the tables and the report."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from prunekit.batches import as_batches
from prunekit.errors import InputError, PrunekitError
from prunekit.files import write_json
from prunekit.recipe import Plan
from prunekit.report import write_report
from prunekit.study.layout import FORMAT, Layout
from prunekit.study.progress import Bars
from prunekit.study.spec import Cell, Study
from prunekit.study.stages import dataset, plan, run_cell, train_network
from prunekit.study.tables import write_tables
from prunekit.study.tasks import Failure, Task, run_tasks
from prunekit.version import __version__


class StudyError(PrunekitError):
    """Some cells of a study failed; the results of the others are written."""


def run_study(
    study: Study,
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
        console: where progress is shown.

    Returns:
        The path of the report.

    Raises:
        InputError, DataError, ModelError: before the first network is trained.
        StudyError: if a cell failed; the results of all others are written.
    """
    layout = Layout(Path(out))
    workers = workers if workers is not None else os.cpu_count() or 1
    if workers < 1:
        raise InputError(f"workers = {workers}: at least one process is needed")
    layout.check()
    folder = None if data_dir is None else Path(data_dir)
    plans = plan(study, folder)
    write_json(layout.study, describe(study, dataset(study, folder).task, command))
    tasks = make_tasks(study, layout, folder, plans)
    with Bars(tasks, console or Console(stderr=True)) as bars:
        failures = run_tasks(tasks, min(workers, max(len(tasks), 1)), bars)
    write_tables(study, layout)
    if failures:
        raise StudyError(_summary(failures, layout))
    return write_report(layout.root)


def make_tasks(study: Study, layout: Layout, data_dir: Path | None, plans: dict[str, Plan]) -> list[Task]:
    """What is still to be done."""
    data = as_batches(dataset(study, data_dir))
    tasks = []
    for seed in range(study.seeds):
        if not (layout.network(study, seed) / "result.json").exists():
            cost = 1.0 + study.training.length(data)
            tasks.append(
                Task(_network_name(seed), _train_task, (study.to_dict(), seed, layout, data_dir), cost=cost)
            )
    trained_here = {task.name for task in tasks}
    for seed in range(study.seeds):
        for cell in study.cells:
            if (layout.cell(cell, seed) / "result.json").exists():
                continue
            training = cell.recipe.retrain.plan
            per_step = 50 + (0 if training is None else training.length(data) - cell.recipe.retrain.start)
            tasks.append(
                Task(
                    f"{cell.label} [{cell.key[:4]}] seed {seed}",
                    _cell_task,
                    (study.to_dict(), cell.key, cell.label, seed, layout, data_dir),
                    after=(_network_name(seed),) if _network_name(seed) in trained_here else (),
                    cost=float(per_step * len(plans[cell.key].steps)),
                )
            )
    return tasks


def describe(study: Study, task: str, command: str | None) -> dict[str, Any]:
    """What study.json says: enough for the report, and to run the study again."""
    return {
        "format": FORMAT,
        "name": study.name,
        "title": study.title or study.name,
        "question": study.question,
        "expected": study.expected,
        "dataset": study.dataset.to_dict(),
        "model": study.model.to_dict(),
        "training": study.training.to_dict(),
        "seeds": study.seeds,
        "methods": {
            label: {
                "recipe": [cell.recipe.to_dict() for cell in study.cells if cell.label == label],
                "summary": method.describe()[0],
                "paper": method.describe()[1],
            }
            for label, method in study.methods.items()
        },
        "controls": study.controls.to_dict(),
        "study": study.to_dict(),
        "environment": {
            "prunekit": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "command": command or f"prunekit compare {study.name} --seeds {study.seeds}",
        "primary": "test_accuracy" if task == "classification" else "test_mse",
    }


def _network_name(seed: int) -> str:
    return f"train seed {seed}"


def _train_task(
    study: dict[str, Any], seed: int, layout: Layout, data_dir: Path | None, progress: Any
) -> None:
    train_network(
        Study.parse(study), seed, layout, data_dir, lambda done, total: progress(done / max(total, 1))
    )


def _cell_task(
    study: dict[str, Any],
    key: str,
    label: str,
    seed: int,
    layout: Layout,
    data_dir: Path | None,
    progress: Any,
) -> None:
    parsed = Study.parse(study)
    cell = _find(parsed, label, key)
    run_cell(
        parsed,
        cell,
        seed,
        layout,
        data_dir,
        lambda step, steps, done, total: progress((step - 1 + done / max(total, 1)) / steps),
    )


def _find(study: Study, label: str, key: str) -> Cell:
    return next(cell for cell in study.cells if (cell.label, cell.key) == (label, key))


def _summary(failures: list[Failure], layout: Layout) -> str:
    first = failures[0]
    others = f" ({len(failures) - 1} more failed)" if len(failures) > 1 else ""
    return f"{first.name} failed: {first.message}{others}; what succeeded is in {layout.results}"
