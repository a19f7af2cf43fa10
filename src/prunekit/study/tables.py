"""study.json, suite.json, results.csv and layers.csv: what a report is made from."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from prunekit import __version__
from prunekit.digests import write_sums
from prunekit.files import write_text
from prunekit.study.layout import Layout, Results
from prunekit.study.spec import Study
from prunekit.study.suite import StudySuite
from prunekit.study_files import DENSE, FORMAT, LAYER_COLUMNS, LAYERS_CSV, RESULT_COLUMNS, RESULTS_CSV


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
                **method.note(),
            }
            for label, method in study.methods.items()
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


def write_tables(study: Study, layout: Layout, read: Results) -> None:
    """Write both tables from what is finished, dense network first, and their digests.

    Args:
        study: the study.
        layout: of its folder.
        read: what has been read of the folder so far; the rest is read now.

    Raises:
        DataError: naming the file, if a result is damaged.
    """
    common = {"study": study.name, "dataset": study.dataset.name, "model": study.model.name}
    results: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    prunable: int | None = None
    for cell in study.cells:
        for seed in range(study.seeds):
            folder = layout.cell(cell, seed)
            if not read.has(folder):
                continue
            cell_rows, cell_layers = read.cell(folder)
            where = {"method": cell.label, "cell": cell.key, "seed": seed}
            results += [{**common, **where, **row} for row in cell_rows]
            layers += [{**where, **row} for row in cell_layers]
            prunable = prunable or cell_rows[0]["prunable"]
    dense = [{**common, **row} for row in _dense_rows(study, layout, read, prunable)]
    write_text(layout.root / RESULTS_CSV, _csv(RESULT_COLUMNS, [*dense, *results]))
    write_text(layout.root / LAYERS_CSV, _csv(LAYER_COLUMNS, layers))
    write_sums(layout.root, (RESULTS_CSV, LAYERS_CSV))


def _dense_rows(
    study: Study, layout: Layout, read: Results, prunable: int | None
) -> Iterable[dict[str, Any]]:
    for seed in range(study.seeds):
        folder = layout.network(study, seed)
        if read.has(folder):
            yield {
                "method": DENSE,
                "cell": study.network_key,
                "seed": seed,
                "step": 0,
                "sparsity": 0.0,
                "compression_ratio": 1.0,
                "prunable": prunable,
                "kept": prunable,
                **read.network(folder),
            }


def _csv(columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
