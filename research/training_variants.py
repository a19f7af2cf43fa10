"""How many units the oracle can remove for less than one point, by how the network was trained.

    python research/training_variants.py neurons-1layer

Trains the study's network by each of a few trainings, three seeds, removes its units in the oracle's order
(squared error, the training images, ranked again after every removal) and writes trainings.csv into the
folder of the study in docs/results.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.graph import chain_of, groups, unit_masks
from prunekit.parts.regularize import L2
from prunekit.study import load_study
from prunekit.study.stages import build, dataset
from prunekit.training import Training, train
from prunekit.units import eliminate

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
IMAGES = 10_000
COMMON = {"batch_size": 100, "decay": "cosine", "loss": "squared_error"}
TRAININGS = {
    "Adam, 20 epochs (the study's)": Training(epochs=20, lr=0.002, **COMMON),
    "Adam, 8 epochs": Training(epochs=8, lr=0.002, **COMMON),
    "Adam, 20 epochs, L2 of 0.001": Training(epochs=20, lr=0.002, regularize=(L2(strength=0.001),), **COMMON),
    "SGD with momentum, rate 0.05, 20 epochs": Training(epochs=20, lr=0.05, optimizer="sgd", **COMMON),
    "SGD with momentum, rate 0.02, 20 epochs": Training(epochs=20, lr=0.02, optimizer="sgd", **COMMON),
}


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """The share of the examples that are classified rightly."""
    return float((model(inputs).argmax(1) == targets).float().mean())


def trial(model: nn.Module, data, training: Training, seed: int) -> tuple[float, int, float]:
    """Dense test accuracy, units removed for less than a point of it, and the accuracy with half removed."""
    train(model, data.train, training, seed=seed)
    model.eval()
    chain, plan = chain_of(model, data.train.inputs[:2]), groups(model, data.train.inputs[:2])
    test = data.test.inputs, data.test.targets
    dense = accuracy(model, *test)
    course = eliminate(chain, data.train.inputs, data.train.targets, "squared_error", floor=1)
    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in chain.groups}
    units, half = None, 0.0
    for count, (name, unit) in enumerate(course.order, start=1):
        kept[name][unit] = False
        unit_masks(model, plan, kept).apply(model)
        now = accuracy(model, *test)
        if count == 50:
            half = now
        if units is None and dense - now >= 0.01 - 1e-9:
            units = count - 1
    return dense, units if units is not None else len(course.order), half


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="neurons-1layer or neurons-2layer")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(given.study)
    study = study.model_copy(update={"dataset": study.dataset.model_copy(update={"limit": IMAGES})})
    with (FOLDER / given.study / "trainings.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("method", "seed", "dense", "units_for_one_point", "with_50_removed"))
        for seed in range(study.seeds):
            data = dataset(study, given.data_dir, seed)
            for name, training in TRAININGS.items():
                dense, units, half = trial(build(study, data, seed), data, training, seed)
                writer.writerow((name, seed, round(dense, 6), units, round(half, 6)))
                file.flush()


if __name__ == "__main__":
    main()
