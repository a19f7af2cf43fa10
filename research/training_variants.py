"""How many units the oracle can remove for less than one point, by how the network was trained.

    python research/training_variants.py neurons-1layer

Trains the study's network by each of a few trainings, three seeds, removes its units in the oracle's order
(squared error, 10,000 training images, ranked again after every removal) and prints a table in Markdown.
"""

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.graph import chain_of, groups, unit_masks
from prunekit.parts.regularize import L2
from prunekit.study import load_study
from prunekit.study.stages import build, dataset
from prunekit.training import Training, train
from prunekit.units import eliminate

EXAMPLES = 10_000
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
    """In percent."""
    return 100 * float((model(inputs).argmax(1) == targets).float().mean())


def trial(model: nn.Module, data, training: Training, seed: int) -> tuple[float, int, float]:
    """Dense test accuracy, units removed for less than a point of it, and the accuracy with half removed."""
    train(model, data.train, training, seed=seed)
    model.eval()
    chain, plan = chain_of(model, data.train.inputs[:2]), groups(model, data.train.inputs[:2])
    test = data.test.inputs, data.test.targets
    dense = accuracy(model, *test)
    course = eliminate(
        chain, data.train.inputs[:EXAMPLES], data.train.targets[:EXAMPLES], "squared_error", floor=1
    )
    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in chain.groups}
    units, half = None, 0.0
    for count, (name, unit) in enumerate(course.order, start=1):
        kept[name][unit] = False
        unit_masks(model, plan, kept).apply(model)
        now = accuracy(model, *test)
        if count == 50:
            half = now
        if units is None and dense - now >= 1:
            units = count - 1
    return dense, units if units is not None else len(course.order), half


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="neurons-1layer or neurons-2layer")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    study = load_study(given.study)
    print("| training | dense | units removed for < 1 point | accuracy with 50 removed |\n|---|---|---|---|")
    for name, training in TRAININGS.items():
        found = []
        for seed in range(3):
            data = dataset(study, given.data_dir, seed)
            found.append(trial(build(study, data, seed), data, training, seed))
        dense, units, half = zip(*found, strict=True)
        spread = [f"{statistics.mean(each):.2f} ± {statistics.stdev(each):.2f}" for each in (dense, half)]
        print(f"| {name} | {spread[0]} | {', '.join(map(str, units))} | {spread[1]} |", flush=True)


if __name__ == "__main__":
    main()
