"""What is still to be done of a study, as tasks; what cannot be done is refused before the first of them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekit.batches import Batches, as_batches
from prunekit.errors import DataError, InputError, ModelError, PrunekitError
from prunekit.recipe import Plan
from prunekit.structure import chain_of
from prunekit.study.layout import Layout
from prunekit.study.outputs import Results, discard, is_finished, remove
from prunekit.study.spec import Cell, Study
from prunekit.study.stages import build, dataset, files_of_network, run_cell, train_network
from prunekit.study.tasks import Progress, Task
from prunekit.study.unit_stage import has_units, write_units
from prunekit.trial import check_takes

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
        try:
            chain = chain_of(model)
        except PrunekitError as error:
            raise type(error)(f"unit_figures: {error}") from error
        if not chain.groups:
            raise ModelError("unit_figures: the network has no units that could be removed")
    batches = as_batches(data)
    plans = {}
    for cell in study.cells:
        try:
            plans[cell.key] = _plan_cell(cell, study, model, batches, data.test.inputs[:2])
        except PrunekitError as error:
            raise type(error)(f"method {cell.name!r}: {error}") from error
    return plans


def _plan_cell(cell: Cell, study: Study, model: nn.Module, data: Batches, example: Tensor) -> Plan:
    retrain = cell.recipe.retrain
    steps = study.training.length(data)
    if retrain.checkpoint is not None and retrain.checkpoint > steps:
        raise InputError(
            f"retrain {retrain.name!r} goes back to step {retrain.checkpoint}, "
            f"but the training has only {steps} steps"
        )
    retrain.check(model, {step: {} for step in study.checkpoints})
    return cell.recipe.plan(model, example)


def make_tasks(
    study: Study, layout: Layout, data_dir: Path | None, plans: Plans, read: Results
) -> list[Task]:
    """The networks and cells that are not finished, each cell after its network.

    What is finished but damaged is said, removed, and a task like the others. To be called by the holder of
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
    settings, allow = study.to_dict(), study.allow
    files = files_of_network(study)
    networks: dict[int, Task] = {}
    for seed in range(study.seeds):
        folder = layout.network(study, seed)
        name = f"training of seed {seed}"
        if not _is_done(folder, name, lambda folder: read.network(folder, files)):
            networks[seed] = Task(
                name,
                _train,
                (settings, allow, seed, layout, data_dir),
                cost=float(OVERHEAD + study.training.length(data)),
            )
    cells: dict[Path, Task] = {}
    done: set[Path] = set()
    for seed in range(study.seeds):
        for cell in study.cells:
            folder = layout.cell(cell, seed)
            name = f"{cell.name}, seed {seed}"
            if folder in cells or folder in done:
                continue  # labels that differ in punctuation share the folder of an equal recipe
            if _is_done(folder, name, read.cell):
                done.add(folder)
                continue
            cells[folder] = Task(
                name,
                _prune,
                (settings, allow, cell.label, cell.key, seed, layout, data_dir),
                after=(networks[seed].name,) if seed in networks else (),
                cost=_cost(cell, plans[cell.key], data),
            )
    units = [] if _has_units(study, layout) else [_units_task(study, layout, data_dir, networks)]
    return [*networks.values(), *cells.values(), *units]


def _has_units(study: Study, layout: Layout) -> bool:
    """Whether nothing is to be done for figures of units; what is damaged or of another study is removed."""
    if study.unit_figures is not None:
        try:
            if has_units(study, layout):
                return True
        except DataError as error:
            log.warning("%s; done anew", error)
    remove(layout.units)
    return study.unit_figures is None


def _units_task(study: Study, layout: Layout, data_dir: Path | None, networks: dict[int, Task]) -> Task:
    return Task(
        "figures of units",
        _sweep,
        (study.to_dict(), study.allow, layout, data_dir),
        after=(networks[0].name,) if 0 in networks else (),
        cost=float(10 * OVERHEAD),
    )


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
    return float((OVERHEAD + length) * len(plan.steps) + warm_up)


def _train(
    study: dict[str, Any],
    allow: tuple[str, ...],
    seed: int,
    layout: Layout,
    data_dir: Path | None,
    progress: Progress,
) -> None:
    train_network(
        Study.parse(study, allow=allow),
        seed,
        layout,
        data_dir,
        lambda done, total: progress(done / max(total, 1)),
    )


def _sweep(
    study: dict[str, Any], allow: tuple[str, ...], layout: Layout, data_dir: Path | None, progress: Progress
) -> None:
    progress(0.0)
    write_units(Study.parse(study, allow=allow), layout, data_dir)


def _prune(
    study: dict[str, Any],
    allow: tuple[str, ...],
    label: str,
    key: str,
    seed: int,
    layout: Layout,
    data_dir: Path | None,
    progress: Progress,
) -> None:
    parsed = Study.parse(study, allow=allow)
    cell = next((cell for cell in parsed.cells if (cell.label, cell.key) == (label, key)), None)
    if cell is None:
        raise InputError(
            "the recipe is another one in a process of its own: import what is yours from a module, not from "
            "the script that is run"
        )
    run_cell(
        parsed,
        cell,
        seed,
        layout,
        data_dir,
        lambda step, steps, done, total: progress((step - 1 + done / max(total, 1)) / steps),
    )
