"""The tables of a study: results.csv and layers.csv in long format."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from prunekit.digests import write_sums
from prunekit.files import write_text
from prunekit.study.layout import Layout
from prunekit.study.outputs import Results, is_finished
from prunekit.study.spec import Study

RESULTS = (
    "study", "dataset", "model", "method", "cell", "seed", "step", "sparsity", "compression_ratio",
    "prunable", "kept", "parameters", "nonzeros", "macs", "macs_nonzero", "bytes", "train_loss",
    "validation_accuracy", "validation_loss", "validation_mse", "test_accuracy", "test_top5", "test_loss",
    "test_mse", "seconds",
)  # fmt: skip
LAYERS = ("method", "cell", "seed", "step", "layer", "shape", "parameters", "kept", "sparsity")


def write_tables(study: Study, layout: Layout, read: Results) -> int:
    """Write both tables from what is finished, dense network first, and their digests.

    Args:
        study: the study.
        layout: of its folder.
        read: what has been read of the folder so far; the rest is read now.

    Returns:
        The number of finished cells.

    Raises:
        DataError: naming the file, if a result is damaged.
    """
    common = {"study": study.name, "dataset": study.dataset.name, "model": study.model.name}
    results: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    finished = 0
    prunable: int | None = None
    for cell in study.cells:
        for seed in range(study.seeds):
            folder = layout.cell(cell, seed)
            if not (read.knows(folder) or is_finished(folder)):
                continue
            finished += 1
            cell_rows, cell_layers = read.cell(folder)
            where = {"method": cell.label, "cell": cell.key, "seed": seed}
            results += [{**common, **where, **row} for row in cell_rows]
            layers += [{**where, **row} for row in cell_layers]
            prunable = prunable or cell_rows[0]["prunable"]
    dense = [{**common, **row} for row in _dense_rows(study, layout, read, prunable)]
    write_text(layout.results, _csv(RESULTS, [*dense, *results]))
    write_text(layout.layers, _csv(LAYERS, layers))
    write_sums(layout.root, (layout.results.name, layout.layers.name))
    return finished


def _dense_rows(
    study: Study, layout: Layout, read: Results, prunable: int | None
) -> Iterable[dict[str, Any]]:
    for seed in range(study.seeds):
        folder = layout.network(study, seed)
        if is_finished(folder):
            yield {
                "method": "dense",
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
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row.get(column) is None else row[column] for column in columns])
    return text.getvalue()
