"""The pictures of a study of neurons that a report has no table for, from the folder of its results.

    prunekit compare neurons-1layer --out runs/neurons-1layer
    python research/unit_pictures.py neurons-1layer runs/neurons-1layer

Writes into the folder's `figures`: the error against the gain of every tenth unit that the oracle removes,
the regret of each method against the oracle, and the correlations between units, of the network of seed 0.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from prunekit.digests import read_tensors
from prunekit.report.style import Drawing, svg_of
from prunekit.report.unit_pictures import correlation_drawing, gain_sweep_drawing, regret_drawing
from prunekit.statistics import activity
from prunekit.structure import chain_of
from prunekit.study import load_study
from prunekit.study.layout import Layout
from prunekit.study.stages import build, dataset
from prunekit.units import eliminate, gain_sweep

EXAMPLES = 5000


def gain_sweeps(chain, inputs, targets, every: int) -> Drawing:
    """Gain sweeps of the units that the oracle removes, one of every so many."""
    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in chain.groups}
    course = eliminate(chain, inputs, targets, "squared_error", floor=1)
    gains = torch.cat([torch.linspace(0, 10, 101, dtype=torch.float64)])
    rows, removed = [], []
    for place, (name, unit) in enumerate(course.order):
        if place % every == 0:
            found = gain_sweep(
                chain, inputs, targets, "squared_error", [(name, unit)], gains=gains, kept=kept
            )
            rows.append(found[0].numpy())
            removed.append(place)
        kept[name][unit] = False
    return gain_sweep_drawing(gains.numpy(), np.array(rows), removed, "squared error")


def regret(folder: Path, yardstick: str, random: str | None) -> Drawing:
    """From results.csv."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (folder / "results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["method"] != "dense":
                gone = int(row["prunable"]) - int(row["kept"])
                values[row["method"]][gone].append(100 * float(row["test_accuracy"]))
    curves = {
        method: {gone: float(np.mean(each)) for gone, each in counts.items()}
        for method, counts in values.items()
    }
    return regret_drawing(curves, yardstick, random, "test accuracy")


def main() -> None:
    """Make the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a named study, or its file")
    parser.add_argument("folder", type=Path, help="where its results are")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument(
        "--yardstick", default="oracle", help="the method that the others are measured against"
    )
    parser.add_argument("--every", type=int, default=10, help="one gain sweep for so many removals")
    given = parser.parse_args()
    study = load_study(given.study)
    data = dataset(study, given.data_dir, 0)
    model = build(study, data, 0)
    trained = Layout(given.folder).network(study, 0) / "trained.safetensors"
    model.load_state_dict(read_tensors(trained)[0])
    chain = chain_of(model.eval())
    inputs, targets = data.train.inputs[:EXAMPLES], data.train.targets[:EXAMPLES]
    correlations = {name: each.correlation.numpy() for name, each in activity(chain, inputs).items()}
    drawings = [
        gain_sweeps(chain, inputs, targets, given.every),
        regret(given.folder, given.yardstick, study.controls.random),
        correlation_drawing(correlations),
    ]
    for drawing in drawings:
        path = given.folder / "figures" / f"{drawing.name}.svg"
        path.write_text(svg_of(drawing), encoding="utf-8")
        drawing.figure.savefig(path.with_suffix(".png"), dpi=160)
        print(path)


if __name__ == "__main__":
    main()
