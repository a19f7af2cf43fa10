"""Neurons and weights together: LeNet-300-100 on MNIST, by units, by weights, and by both in rounds.

`python research/combined.py` writes docs/results/combined-mnist/results.csv. Every way has the same rounds,
after each of which the network is trained for the same number of epochs, and is saved: what is compared is
the error on the test part against the bytes of the saved folder. Units go by their L1 norm, their mean folded
into the next bias, and are taken out; weights by exact layer-wise OBS with its refit.
"""

import copy
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from prunekit import Recipe, prune
from prunekit.data import Dataset, DataSettings, load
from prunekit.measure import evaluate
from prunekit.models import create
from prunekit.saving import save_pretrained
from prunekit.training import Training, train

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "combined-mnist"
SEEDS, IMAGES = 3, 20_000
TRAINING = Training(epochs=10, batch_size=60, lr=0.0012, decay="cosine")
AFTER = {"epochs": 2, "batch_size": 60, "lr": 0.0005, "decay": "cosine"}
LEFT = (0.4, 0.2, 0.1, 0.05, 0.03, 0.02)
"""The share of the first network's weights that is left after each round."""

WAYS = {"unpruned": None, "weights": 0.0, "units": 1.0, "units, then weights": 0.4}
"""The power of that share which is left of the units of each layer: with 0 all.
None for a network of which nothing goes, and which is trained as long."""


def units(left: float) -> Recipe:
    """The recipe that leaves this share of the units of every layer."""
    return Recipe.parse(
        {
            "score": "magnitude",
            "granularity": "unit",
            "allocation": "per_layer",
            "repair": "fold_mean",
            "schedule": {"name": "one_shot", "sparsity": 1 - left},
        }
    )


def weights(left: float) -> Recipe:
    """The recipe that leaves this share of the weights, and trains."""
    removing = {
        "score": "layer_obs",
        "repair": "masked_least_squares",
        "calibration": 4096,
        "schedule": {"name": "one_shot", "sparsity": 1 - left},
    }
    nothing = {"allocation": "none", "schedule": "allocation_decides"}
    return Recipe.parse(
        {**(nothing if left >= 1 else removing), "retrain": {"name": "fine_tune", "training": AFTER}}
    )


def size(model: nn.Module) -> int:
    """The weights of the linear layers, zeros as well."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)


def curve(
    model: nn.Module, data: Dataset, power: float | None, seed: int
) -> Iterator[tuple[float, int, float, float]]:
    """By round: (share of the weights left, weights that are not zero, kilobytes, test error)."""
    whole = size(model)
    before = 1.0
    for number, share in enumerate(LEFT):
        if power:
            # of the units that are still there; the first layer's share of the weights is that of its units
            pruned = prune(model, units((share / before) ** power), data.train, seed=seed + number)
            pruned.shrink(data.train.inputs[:8])
            model = pruned.model
        left = 1.0 if power in (None, 1) else min(1.0, share * whole / size(model))
        pruned = prune(model, weights(left), data.train, seed=seed + number)
        before = share
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(pruned, folder)
            bytes_ = sum(path.stat().st_size for path in Path(folder).iterdir())
        quality = evaluate(model, data.test.inputs, data.test.targets, task="classification")
        nonzeros = sum(int((p != 0).sum()) for p in model.parameters() if p.dim() == 2)
        yield share, nonzeros, bytes_ / 1000, round(1 - quality.accuracy, 4)


def main() -> None:
    """Write every curve."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = load(DataSettings(name="mnist", limit=IMAGES, validation=1 / 12))
    with (FOLDER / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("method", "seed", "share_left", "nonzeros", "kilobytes", "test_error"))
        for seed in range(SEEDS):
            dense = create("lenet_300_100", data.input_shape, data.outputs, seed=seed)
            train(dense, data.train, TRAINING, seed=seed)
            for label, power in WAYS.items():
                for row in curve(copy.deepcopy(dense), data, power, seed):
                    writer.writerow((label, seed, *row))
                    print(seed, label, row, flush=True)


if __name__ == "__main__":
    main()
