"""The stages of a study: each writes its files as a whole, and last the result that says it is finished."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.batches import as_batches
from prunekit.controls import random_control, scratch_control
from prunekit.data import Dataset, DataSettings, Split, load
from prunekit.digests import read_tensors, write_json_with_digest, write_tensors
from prunekit.errors import DataError, InputError, ModelError, PrunekitError
from prunekit.files import remove
from prunekit.graph import chain_of, shrink_dead
from prunekit.history import Pruned, Record
from prunekit.loggers import Logger
from prunekit.measure import count, evaluate
from prunekit.models import create
from prunekit.packing import pack
from prunekit.parts.granularity import Unit
from prunekit.pruning import Session
from prunekit.recipe import Plan, Recipe
from prunekit.saving import (
    Architecture,
    SavedNetwork,
    load_masks,
    save_pretrained,
    session_from_tensors,
    session_to_tensors,
)
from prunekit.seeds import derive
from prunekit.statistics import ActivationStats, StatContext, collect
from prunekit.study.jobs import Progress
from prunekit.study.layout import (
    MODEL,
    PACKED,
    STATE,
    TRAINED,
    Layout,
    Results,
    discard,
    stage_of,
    write_result,
)
from prunekit.study.spec import Cell, Study
from prunekit.study_files import UNITS_JSON
from prunekit.task import Task
from prunekit.training import State, copy_state, train
from prunekit.units import eliminate, gain_sweep

log = logging.getLogger(__name__)


def train_network(study: Study, seed: int, layout: Layout, data_dir: Path | None, progress: Progress) -> None:
    """The dense network of a seed, trained once for all methods, with the checkpoints that they go back to.

    Raises:
        TrainingError: if the loss is not finite.
        OSError: if the folder cannot be written to.
    """
    folder = layout.network(study, seed)
    discard(folder)
    data = dataset(study, data_dir, seed)
    model = build(study, data, seed)
    progress(0.0)  # the loading of data and code is over: from here on counts for the pace

    def keep(step: int, state: State) -> None:
        write_tensors(folder / checkpoint(step), state)

    started = time.perf_counter()
    trained = train(
        model,
        as_batches(data),
        study.training,
        seed=derive(seed, "training", "dense"),
        checkpoints=study.checkpoints,
        on_checkpoint=keep,
        report=lambda done, total: progress(done / max(total, 1)),
    )
    write_tensors(folder / TRAINED, copy_state(model))
    row = {
        **measured(model, data),
        "train_loss": trained.loss if trained.iterations else None,
        "seconds": time.perf_counter() - started,
    }
    files = (TRAINED, *(checkpoint(step) for step in study.checkpoints))
    write_result(folder, {"row": row}, files)


def checkpoint(step: int) -> str:
    """The name of the file with the values at a step of the dense training."""
    return f"checkpoint-{step}.safetensors"


def run_cell(
    study: Study,
    label: str,
    key: str,
    seed: int,
    layout: Layout,
    data_dir: Path | None,
    progress: Progress,
) -> None:
    """One recipe on the trained network of a seed; every step of it is a stage of its own.

    With an order of layers the results are those at the end of each round, when all have had their turn.

    Raises:
        DataError: naming the file, if the network is damaged.
        InputError: if the study has no such cell in this process.
        PrunekitError: whatever the recipe or its training raises.
        OSError: if the folder cannot be written to.
    """
    cell = next((cell for cell in study.cells if (cell.label, cell.key) == (label, key)), None)
    if cell is None:
        raise InputError(
            "the recipe is another one in a process of its own: import what is yours from a module, not from "
            "the script that is run"
        )
    folder = layout.cell(cell, seed)
    discard(folder, keep=(STATE,))
    data = dataset(study, data_dir, seed)
    state = folder / STATE
    told = CellProgress(progress)
    session = _begun(study, cell, seed, data, layout, state, told)

    def measurements(model: nn.Module) -> dict[str, Any]:
        return measured(model, data) if _counts(session, len(session.history) + 1) else {}

    told.at(session)  # where an interrupted cell goes on: what was done before says nothing of the pace
    for _ in session.run(evaluate=measurements):
        _save_session(session, state)
        told.at(session)
    pruned = session.result()
    architecture = Architecture(study.model, data.input_shape, data.outputs)
    save_pretrained(pruned, folder / MODEL, architecture=architecture)
    # where its `stop` has rolled back the first step, the network is as it was
    history = session.history or [_unchanged(session, measured(session.model, data))]
    rows, layers = rows_of(history, _gone_before(cell, study, session, data, seed)), layers_of(session)
    files = [f"{MODEL}/{path.name}" for path in sorted((folder / MODEL).iterdir())]
    if cell.recipe.quantize.changes:
        rows[-1] |= pack_network(pruned, folder / PACKED, architecture, data.test.inputs[:2])
        files.append(PACKED)
    write_result(folder, {"rows": rows, "layers": layers}, files)
    state.unlink(missing_ok=True)


class CellProgress(Logger):
    """How far a cell is, in [0, 1]: the steps that are saved, and the trainings of the one under way."""

    def __init__(self, tell: Progress) -> None:
        self._tell, self._taken, self._steps = tell, 0, 1

    def at(self, session: Session) -> None:
        """All that the session has done is saved."""
        self._taken, self._steps = len(session.history), len(session.plan.steps)
        self.progress(0, 1)

    def progress(self, done: int, total: int) -> None:
        """A training of the step is this far."""
        self._tell((self._taken + done / max(total, 1)) / self._steps)


def pack_network(pruned: Pruned, path: Path, architecture: Architecture, inputs: Tensor) -> dict[str, int]:
    """The sizes of a network as one file: as published, and the smallest, which is kept.

    The first has gaps between weights and Huffman codes. The other is of the network without its dead units,
    the others in the order that takes fewest bytes; both is done in place, where it can be.
    """
    published = pack(pruned, path, architecture=architecture, coding="published").stat().st_size
    try:
        pruned.shrink(inputs)
    except PrunekitError as error:  # no unit died, or they cannot be taken out
        log.info("%s is packed with all units: %s", path, error)
    try:
        pruned.reorder(inputs)
    except PrunekitError as error:
        log.info("%s is packed with its units as they are: %s", path, error)
    packed = pack(pruned, path, architecture=architecture).stat().st_size
    return {"packed_bytes": packed, "published_bytes": published}


def _begun(
    study: Study, cell: Cell, seed: int, data: Dataset, layout: Layout, state: Path, told: Logger
) -> Session:
    """The session of a cell where it was interrupted, or at its beginning, also if its state is damaged."""
    session = _fresh(study, cell, seed, data, layout, told)
    if not state.exists():
        return session
    try:
        _resume(session, state)
    except PrunekitError as error:
        log.warning("%s; %s, seed %d, begins afresh", error, cell.name, seed)
        remove(state)
        return _fresh(study, cell, seed, data, layout, told)  # what was there may be half of another state
    return session


def _fresh(study: Study, cell: Cell, seed: int, data: Dataset, layout: Layout, told: Logger) -> Session:
    network = layout.network(study, seed)
    if cell.start is None:
        model = _trained_network(study, data, seed, layout)
    else:
        model = _start_network(study, cell.start, seed, data, layout)
    wanted = cell.recipe.retrain.checkpoint
    recipe = cell.recipe
    if cell.random_of is not None:
        plan = cell.random_of.recipe.plan(model, data.test.inputs[:2])
        recipe = _control(study, cell, cell.random_of, plan, data, layout, seed)
        if cell.from_scratch is not None:  # what is zero goes: input features and blocks are not all alike
            load_masks(layout.cell(cell.random_of, seed) / MODEL).apply(model)
    teachers = study.teachers_of(recipe)
    return Session(
        model,
        recipe,
        teacher=None if teachers is None else _trained_network(teachers, data, seed, layout),
        data=data.train,
        validation=data.validation,
        seed=derive(seed, "cell"),
        loggers=(told,),
        checkpoints={} if wanted is None else {wanted: _values(network / checkpoint(wanted))},
    )


def _trained_network(study: Study, data: Dataset, seed: int, layout: Layout) -> nn.Module:
    model = build(study, data, seed)
    path = layout.network(study, seed) / TRAINED
    _fill(model, _values(path), path)
    return model


def _start_network(study: Study, start: Cell, seed: int, data: Dataset, layout: Layout) -> nn.Module:
    """What a cell that has been run has left of the network, its dead units taken out."""
    folder, inputs = layout.cell(start, seed) / MODEL, data.test.inputs[:2]
    saved = SavedNetwork(folder)
    model = saved.load(build(study, data, seed))
    result = shrink_dead(model, inputs, masks=saved.masks())
    if result.form == "graph":
        raise ModelError(f"{study.model.name} would be left as a graph: {result.reason}")
    return model


def _control(
    study: Study, control: Cell, cell: Cell, plan: Plan, data: Dataset, layout: Layout, seed: int
) -> Recipe:
    """The control of a cell that has been run: it takes of each layer what that has taken."""
    rows = groupby(Results().cell(layout.cell(cell, seed))[1], lambda row: row["step"])
    removed = {
        step: dict(zip(plan.names, (row["parameters"] - row["kept"] for row in layers), strict=True))
        for step, layers in rows
    }
    if control.from_scratch is None:
        return random_control(cell.recipe, plan.names, removed)
    last = max(removed, default=0)
    steps = _trained(study, cell.recipe, last, len(plan.steps), data, whole=control.from_scratch == "whole")
    training = study.training.model_copy(update={"epochs": None, "iterations": steps})
    return scratch_control(cell.recipe, training, plan.names, removed.get(last, {}))


def _trained(study: Study, recipe: Recipe, step: int, steps: int, data: Dataset, *, whole: bool) -> int:
    """The optimizer steps that a recipe takes up to a step of so many, or all that its network has had."""
    retrain, every, batches = recipe.retrain, recipe.retrain_every, as_batches(data)
    assert retrain.plan is not None
    done, parts = -(-step // every), -(-steps // every)
    length = retrain.plan.length(batches)
    taken = done * (length - retrain.start)
    if retrain.continues and done:
        taken = retrain.part(done - 1, parts, {}).span(length)[1]
    if not whole:
        return taken
    before = (study.training, *recipe.warm_ups.values())
    return taken + sum(training.length(batches) for training in before)


def _values(path: Path) -> State:
    try:
        return read_tensors(path)[0]
    except DataError as error:  # since this run has looked at it
        raise DataError(f"{error}; run the study again, which does the network anew") from None


def _fill(model: nn.Module, values: State, path: Path) -> None:
    try:
        model.load_state_dict(values)
    except RuntimeError:
        raise DataError(f"{path} holds the values of another network") from None


def dataset(study: Study, data_dir: Path | None, seed: int = 0) -> Dataset:
    """The data of a replicate; a process keeps the last one that it loaded."""
    return _dataset(study.dataset_of(seed), data_dir, study.dataset.content)


@lru_cache(maxsize=1)
def _dataset(settings: DataSettings, data_dir: Path | None, of: str | None) -> Dataset:
    """What is loaded; `of` tells two states of one's own data apart, also with a split for each replicate."""
    return load(settings, data_dir)


def build(study: Study, data: Dataset, seed: int) -> nn.Module:
    """The untrained network of a seed; convolutions in the memory layout that is fastest on a CPU."""
    model = create(study.model, data.input_shape, data.outputs, seed=derive(seed, "initial values"))
    if len(data.input_shape) == 3:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def measured(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """Everything that a row of the results says of a network."""
    counts = count(model, data.test.inputs[:1])
    row: dict[str, Any] = {
        "parameters": counts.parameters,
        "nonzeros": counts.nonzeros,
        "macs": counts.macs,
        "macs_nonzero": counts.macs_nonzero,
        "bytes": counts.bytes,
    }
    for part in ("validation", "test"):
        split: Split = getattr(data, part)
        quality = evaluate(model, split.inputs, split.targets, task=data.task)
        row |= {f"{part}_{name}": value for name, value in asdict(quality).items() if name != "examples"}
    return row


def _counts(session: Session, number: int) -> bool:
    """Whether a step is one of the results: the last at its sparsity, or one that can be the last of all."""
    steps = session.plan.steps
    if number == len(steps) or session.recipe.stop.needs_data:
        return True
    this, following = steps[number - 1], steps[number]
    stands = this.sparsity is not None and this.sparsity == following.sparsity
    return this.round != following.round and not stands


def _unchanged(session: Session, measurements: dict[str, Any]) -> Record:
    kept = session.kept
    return Record(
        step=0,
        sparsity=kept.sparsity,
        kept=kept.kept,
        total=kept.total,
        layers={},
        compression_ratio=1.0,
        train_loss=None,
        seconds=0.0,
        measured=measurements,
    )


def _gone_before(cell: Cell, study: Study, session: Session, data: Dataset, seed: int) -> int:
    """The prunable weights of the whole network that were not there any more when a cell began."""
    if cell.start is None:
        return 0
    whole = cell.recipe.plan(build(study, data, seed), data.test.inputs[:2])
    counts = (sum(each.shape.numel() for each in plan.elements.targets) for plan in (whole, session.plan))
    return next(counts) - next(counts)


def rows_of(history: Sequence[Record], before: int = 0) -> list[dict[str, Any]]:
    """One row per step that was measured, with the seconds since the one before.

    Args:
        history: what the steps achieved.
        before: prunable weights that were gone before the first of them; they count as removed.
    """
    rows = []
    seconds = 0.0
    for record in history:
        seconds += record.seconds
        if record.measured:
            total = record.total + before
            of_whole = {
                "sparsity": (total - record.kept) / total,
                "compression_ratio": total / max(record.kept, 1),
            }
            rows.append(
                {
                    "step": record.step,
                    "sparsity": record.sparsity,
                    "compression_ratio": record.compression_ratio,
                    **(of_whole if before else {}),
                    "prunable": total,
                    "kept": record.kept,
                    **record.measured,
                    "train_loss": record.train_loss,
                    "seconds": seconds,
                }
            )
            seconds = 0.0
    return rows


def layers_of(session: Session) -> list[dict[str, Any]]:
    """One row per step that was measured, and layer."""
    return [
        {
            "step": record.step,
            "layer": target.layer or target.name,
            "shape": "x".join(str(length) for length in target.shape),
            "parameters": target.shape.numel(),
            "kept": record.layers[target.name],
            # the removed over all, not 1 - kept / all, whose last digits are those of a difference
            "sparsity": (target.shape.numel() - record.layers[target.name]) / target.shape.numel(),
        }
        for record in session.history
        if record.measured
        for target in session.plan.elements.targets
    ]


def _save_session(session: Session, path: Path) -> None:
    """The network and the session in one file, so that they cannot disagree."""
    tensors = {f"model/{name}": value for name, value in copy_state(session.model).items()}
    state = {key: value for key, value in session.state_dict().items() if key != "checkpoints"}
    own, text = session_to_tensors(state)
    write_tensors(path, {**tensors, **own}, {"session": text, "stage": stage_of(path.parent)})


def _resume(session: Session, path: Path) -> None:
    """Set a fresh session and its network to a state.

    Raises:
        DataError: naming the file, if it is damaged, or is the state of another cell; the session may be
            changed then.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("stage") != stage_of(path.parent):
        raise DataError(f"{path} is the state of another cell")
    state = session_from_tensors(metadata.get("session", ""), tensors, path)
    values = {name[6:]: value for name, value in tensors.items() if name.startswith("model/")}
    _fill(session.model, values, path)
    try:
        session.load_state_dict({**state, "checkpoints": session.state_dict()["checkpoints"]})
    except (PrunekitError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path} holds no state of this session: {error}") from None


# ---- figures of units --------------------------------------------------------------------------------------

GAINS = torch.linspace(0, 10, 101, dtype=torch.float64)
_TOGETHER = 250  # examples whose activations are held at once


def write_units(study: Study, layout: Layout, data_dir: Path | None, progress: Progress) -> None:
    """Write the gain sweeps and correlations of the trained network of seed 0.

    The oracle removes all units but one of each layer, one after the other, by the squared error; a unit is
    swept just before it is removed, all others of its time as they are.

    Raises:
        DataError: if the network is damaged.
        InputError: if the study asks for no figures of units.
        ModelError: if the network is no chain of layers, or has no unit that could be removed.
    """
    if study.unit_figures is None:
        raise InputError("the study asks for no figures of units")
    progress(0.0)
    data = dataset(study, data_dir)
    model = build(study, data, seed=0)
    model.load_state_dict(read_tensors(layout.network(study, 0) / TRAINED)[0])
    inputs = data.train.inputs[: study.unit_figures.examples]
    chain = chain_of(model.eval(), inputs)
    targets = data.train.targets[: study.unit_figures.examples]
    order = eliminate(chain, inputs, targets, "squared_error", floor=1).order
    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in chain.groups}
    sweeps = []
    for removed, (layer, unit) in enumerate(order):
        if removed % study.unit_figures.every == 0:
            errors = gain_sweep(
                chain, inputs, targets, "squared_error", [(layer, unit)], gains=GAINS, kept=kept
            )
            sweeps.append({"layer": layer, "unit": unit, "removed": removed, "errors": _short(errors[0])})
        kept[layer][unit] = False
    if not sweeps:
        raise ModelError("every layer has one unit only, and none could be removed")
    coupled = Unit().elements(model, example_inputs=inputs[:2]).found
    need, subject = ActivationStats("correlation"), StatContext(model, (), coupled=coupled)
    batches = zip(torch.split(inputs, _TOGETHER), torch.split(targets, _TOGETHER), strict=True)
    found = collect(subject, batches, [need], task=Task("squared_error"))[need]
    write_json_with_digest(
        layout.root / UNITS_JSON,
        {
            "key": study.units_key,
            "error": "squared error",
            "gains": _short(GAINS),
            "sweeps": sweeps,
            "correlations": {layer: [_short(row) for row in each] for layer, each in found.items()},
        },
    )


def _short(values: Tensor) -> list[float]:
    """Six digits: a figure shows no more, and a file of all is several times as large."""
    return [float(f"{value:.6g}") for value in values.tolist()]
