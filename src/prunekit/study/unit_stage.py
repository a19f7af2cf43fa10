"""The stage that writes units.json: gain sweeps and correlations of the units of a study's first network."""

from __future__ import annotations

from pathlib import Path

import torch

from prunekit.digests import read_json_with_digest, read_tensors, write_json_with_digest
from prunekit.errors import InputError, ModelError
from prunekit.statistics import activity
from prunekit.structure import chain_of
from prunekit.study.layout import TRAINED, Layout
from prunekit.study.spec import Study
from prunekit.study.stages import build, dataset
from prunekit.study.tasks import Progress
from prunekit.study_files import UNITS_JSON
from prunekit.units import eliminate, gain_sweep

GAINS = torch.linspace(0, 10, 101, dtype=torch.float64)


def has_units(study: Study, layout: Layout) -> bool:
    """Whether units.json is what the study asks for, and whole.

    Raises:
        DataError: if it is damaged.
    """
    path = layout.root / UNITS_JSON
    return path.exists() and read_json_with_digest(path).get("key") == study.units_key


def write_units(study: Study, layout: Layout, data_dir: Path | None, progress: Progress) -> Path:
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
    found = activity(chain, inputs)
    write_json_with_digest(
        layout.root / UNITS_JSON,
        {
            "key": study.units_key,
            "error": "squared error",
            "gains": _short(GAINS),
            "sweeps": sweeps,
            "correlations": {
                layer: [_short(row) for row in each.correlation] for layer, each in found.items()
            },
        },
    )
    return layout.root / UNITS_JSON


def _short(values: torch.Tensor) -> list[float]:
    """Six digits: a figure shows no more, and a file of all is several times as large."""
    return [float(f"{value:.6g}") for value in values.tolist()]
