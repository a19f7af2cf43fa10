"""The stages of a study: each returns at once when its output exists, and writes it as a whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunekit.batches import as_batches
from prunekit.data import Dataset, DataSettings, Split, load
from prunekit.files import remove_leftovers, replacing, write_json
from prunekit.measure import count, evaluate
from prunekit.models import create
from prunekit.pruning import Session
from prunekit.recipe import Plan
from prunekit.saving import Architecture, save_pretrained
from prunekit.seeds import derive
from prunekit.study.layout import Layout
from prunekit.study.spec import Cell, Study
from prunekit.training import Report, State, copy_state, train, training_seed

TRAINED = "trained"


def train_network(
    study: Study, seed: int, layout: Layout, data_dir: Path | None, report: Report | None = None
) -> Path:
    """The dense network of a seed, trained once for all methods, with the checkpoints that they go back to."""
    folder = layout.network(study, seed)
    if (folder / "result.json").exists():
        return folder
    remove_leftovers(folder)
    data = dataset(study, data_dir)
    model = build(study, data, seed)
    started = time.perf_counter()
    trained = train(
        model,
        as_batches(data),
        study.training,
        seed=training_seed(seed, "dense"),
        checkpoints=study.checkpoints,
        on_checkpoint=lambda step, state: _save_state(folder / f"checkpoint-{step}.safetensors", state),
        report=report,
    )
    _save_state(folder / f"{TRAINED}.safetensors", copy_state(model))
    row = {
        **measured(model, data),
        "train_loss": trained.loss if trained.iterations else None,
        "seconds": time.perf_counter() - started,
    }
    write_json(folder / "result.json", row)
    return folder


def run_cell(
    study: Study,
    cell: Cell,
    seed: int,
    layout: Layout,
    data_dir: Path | None,
    report: Callable[[int, int, int, int], None] | None = None,
) -> Path:
    """One recipe on the trained network of a seed; every step of it is a stage of its own.

    `report` is told (step, steps, optimizer steps done, optimizer steps in all).
    """
    folder = layout.cell(cell, seed)
    if (folder / "result.json").exists():
        return folder
    remove_leftovers(folder)
    data = dataset(study, data_dir)
    network = layout.network(study, seed)
    model = build(study, data, seed)
    model.load_state_dict(load_file(network / f"{TRAINED}.safetensors"))
    wanted = cell.recipe.retrain.checkpoint
    checkpoints = {} if wanted is None else {wanted: load_file(network / f"checkpoint-{wanted}.safetensors")}
    session = Session(model, cell.recipe, data=data.train, seed=derive(seed, "cell"), checkpoints=checkpoints)
    _resume(session, folder / "state.safetensors")
    steps = len(session.plan.steps)

    def tell(done: int, total: int) -> None:
        if report is not None:
            report(len(session.history) + 1, steps, done, total)

    for _ in session.run(evaluate=lambda model: measured(model, data), report=tell):
        _save_session(session, folder / "state.safetensors")
        if report is not None:
            report(len(session.history), steps, 1, 1)
    save_pretrained(
        session.result(),
        folder / "model",
        architecture=Architecture(study.model, data.input_shape, data.outputs),
    )
    write_json(folder / "result.json", {"rows": rows_of(session), "layers": layers_of(session)})
    (folder / "state.safetensors").unlink(missing_ok=True)
    return folder


def plan(study: Study, data_dir: Path | None) -> dict[str, Plan]:
    """The plan of every cell, so that what cannot be done is refused before the first network is trained."""
    model = build(study, dataset(study, data_dir), seed=0)
    for cell in study.cells:
        cell.recipe.retrain.check(model, dict.fromkeys(study.checkpoints, {}))
    return {cell.key: cell.recipe.plan(model) for cell in study.cells}


def dataset(study: Study, data_dir: Path | None) -> Dataset:
    """The study's data; a process keeps the last one that it loaded."""
    return _dataset(json.dumps(study.dataset.to_dict(), sort_keys=True), data_dir)


@lru_cache(maxsize=1)
def _dataset(settings: str, data_dir: Path | None) -> Dataset:
    return load(DataSettings.parse(json.loads(settings)), data_dir)


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
        row |= {
            f"{part}_accuracy": quality.accuracy,
            f"{part}_top5": quality.top5,
            f"{part}_loss": quality.loss,
            f"{part}_mse": quality.mse,
        }
    return row


def rows_of(session: Session) -> list[dict[str, Any]]:
    """One row per step."""
    return [
        {
            "step": record.step,
            "sparsity": record.sparsity,
            "compression_ratio": record.compression_ratio,
            "prunable": record.total,
            "kept": record.kept,
            **record.measured,
            "train_loss": record.train_loss,
            "seconds": record.seconds,
        }
        for record in session.history
    ]


def layers_of(session: Session) -> list[dict[str, Any]]:
    """One row per step and layer."""
    return [
        {
            "step": record.step,
            "layer": target.layer or target.name,
            "shape": "x".join(str(length) for length in target.shape),
            "parameters": target.size,
            "kept": record.layers[target.name],
            "sparsity": 1 - record.layers[target.name] / target.size,
        }
        for record in session.history
        for target in session.plan.targets
    ]


def _save_state(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def _save_session(session: Session, path: Path) -> None:
    """The network and the session in one file, so that they cannot disagree."""
    state = session.state_dict()
    tensors = {f"model/{name}": value for name, value in copy_state(session.model).items()}
    tensors |= {f"mask/{name}": mask for name, mask in state["masks"].items()}
    rest = {key: state[key] for key in ("recipe", "seed", "optimizer_steps", "history")}
    _save_state(path, tensors, {"session": json.dumps(rest)})


def _resume(session: Session, path: Path) -> None:
    if not path.exists():
        return
    with safe_open(path, framework="pt") as file:
        rest = json.loads(file.metadata()["session"])
    tensors = load_file(path)
    state: State = {name[6:]: value for name, value in tensors.items() if name.startswith("model/")}
    masks = {name[5:]: value for name, value in tensors.items() if name.startswith("mask/")}
    checkpoints = session.state_dict()["checkpoints"]
    session.model.load_state_dict(state)
    session.load_state_dict({**rest, "masks": masks, "checkpoints": checkpoints})
