"""The bound on the output error that the layers' errors imply, beside the error that is measured.

    prunekit compare mnist-obs --out runs/mnist-obs
    python research/error_bound_mnist.py runs/mnist-obs

Prunes the trained networks of that study (three seeds) by exact layer-wise OBS and by magnitude, and writes
bound.csv and figures/bound.svg into docs/results/bound. Measured on 5,000 test images.
"""

import argparse
import copy
import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure

from error_bound import layer_errors
from prunekit import Recipe, Session
from prunekit.digests import read_tensors
from prunekit.report.style import (
    Drawing,
    clean,
    drawing_style,
    log_limits,
    set_log_y,
    svg_of,
)
from prunekit.study import load_study
from prunekit.study.layout import Layout
from prunekit.study.stages import build, dataset

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "bound"
LEVELS = (0.5, 0.8, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
COMMON = {"rank": "once", "calibration": 16384, "schedule": {"name": "explicit", "values": list(LEVELS)}}
RECIPES = {
    "exact L-OBS": {**COMMON, "score": "layer_obs", "repair": "masked_least_squares"},
    "magnitude": {**COMMON, "score": "magnitude"},
}
EXAMPLES = 5000
COLORS = {"exact L-OBS": "#0072b2", "magnitude": "#d55e00"}


def course(name: str, study, folder: Path, seed: int, data_dir: Path | None) -> list[dict[str, object]]:
    """One row for every layer, the whole network last, at every level."""
    data = dataset(study, data_dir, seed)
    dense = build(study, data, seed)
    trained = Layout(folder).network(study, seed) / "trained.safetensors"
    dense.load_state_dict(read_tensors(trained)[0])
    session = Session(copy.deepcopy(dense.eval()), Recipe.parse(RECIPES[name]), data=data.train, seed=seed)
    rows: list[dict[str, object]] = []
    for record in session.run():
        found = layer_errors(dense, session.model, data.test.inputs[:EXAMPLES])
        common = {"method": name, "seed": seed, "sparsity": round(record.sparsity, 4)}
        for each in found.layers:
            rows.append(
                {
                    **common,
                    "layer": each.layer,
                    "error": each.error,
                    "bound": each.bound,
                    "measured": each.measured,
                }
            )
        rows.append(
            {**common, "layer": "network", "error": "", "bound": found.bound, "measured": found.measured}
        )
    return rows


def drawing(rows: list[dict[str, object]]) -> Drawing:
    """Bound and measured distance of the whole network against the sparsity, the mean over seeds."""
    with drawing_style():
        figure = Figure(figsize=(7.0, 4.0))
        axes = figure.add_axes((0.1, 0.13, 0.66, 0.83))
        clean(axes)
        values: list[float] = []
        for method, color in COLORS.items():
            for column, dash in (("bound", "--"), ("measured", "-")):
                line = [
                    sum(float(row[column]) for row in rows if _of(row, method, level))
                    / sum(_of(row, method, level) for row in rows)
                    for level in LEVELS
                ]
                axes.plot(
                    [100 * level for level in LEVELS], line, dash, color=color, marker="o", markersize=3
                )
                values += line
                level = line[-1] * (1.25 if (column, method) == ("bound", "exact L-OBS") else 1)
                axes.annotate(
                    f"{method}, {'bound' if column == 'bound' else 'measured'}",
                    (100 * LEVELS[-1], level * (0.8 if (column, method) == ("bound", "magnitude") else 1)),
                    (8, 0),
                    textcoords="offset points",
                    fontsize=8,
                    va="center",
                    color=color,
                    annotation_clip=False,
                )
        set_log_y(axes, *log_limits(values))
        axes.set_xlabel("weights removed (%)")
        axes.set_ylabel("root mean squared distance of the outputs")
    return Drawing("bound", "The bound and what is measured", "Means over the seeds.", figure, {})


def _of(row: dict[str, object], method: str, level: float) -> bool:
    same = row["method"] == method and row["layer"] == "network"
    return same and abs(float(str(row["sparsity"])) - level) < 1e-3


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the results of mnist-obs")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study("mnist-obs")
    rows = [
        row
        for name in RECIPES
        for seed in range(study.seeds)
        for row in course(name, study, given.folder, seed, given.data_dir)
    ]
    with (FOLDER / "bound.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    (FOLDER / "figures").mkdir(exist_ok=True)
    drawn = drawing(rows)
    (FOLDER / "figures" / "bound.svg").write_text(svg_of(drawn), encoding="utf-8")


if __name__ == "__main__":
    main()
