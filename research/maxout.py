"""Pieces of maxout units behind the heaviest layer or behind all, then weights: LeNet-5 and a small VGG.

`python research/maxout.py` writes docs/results/maxout-lenet5/combined.csv. In three rounds every unit goes
from four pieces to one, and what is removed is taken out; in three more the smallest weights go, down to the
same number by every way. After each round the network is trained for the same number of epochs. By weights
alone as many are left after each round as where pieces of the heaviest layer go.
"""

import copy
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit import Recipe, prune
from prunekit.data import Dataset, DataSettings, load
from prunekit.measure import evaluate
from prunekit.models import Maxout, create
from prunekit.seeds import seeded
from prunekit.training import Training, train

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "maxout-lenet5"
SEEDS, PIECES = 3, 4
DENSE = Training(epochs=8, batch_size=64, lr=0.001, decay="cosine")
RETRAIN = {
    "name": "fine_tune",
    "training": {"epochs": 2, "batch_size": 64, "lr": 0.0005, "decay": "cosine"},
}
LEFT = (0.2, 0.08, 0.04)
"""The shares of the first network's weights that are left after the rounds in which weights go."""

WAYS = {
    "unpruned": None,
    "fc1, then weights": ["fc1.layer"],
    "all layers, then weights": ["*"],
    "weights": None,
}
"""Which layers lose a piece of each unit."""

NETWORKS = {
    "lenet5": (DataSettings(name="mnist", limit=4_000), tuple(WAYS)),
    "vgg": (
        DataSettings(name="cifar10", limit=4_000, more_test=3_000),
        ("unpruned", "fc1, then weights", "weights"),
    ),
}
"""The data and the ways of each."""


class MaxoutVGG(nn.Sequential):
    """Six 3x3 convolutions with ReLU, linear layers `fc1` and `fc2` with maxout, and `fc3`, for CIFAR-10.

    As in VGG-16 the first linear layer is the heaviest: it holds 262,144 of 296,920 weights. Batch norms
    follow the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for number, width in enumerate((8, 8, 16, 16, 32, 32), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, width, 3, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
            self.add_module(f"act{number}", nn.ReLU())
            if number % 2 == 0:
                self.add_module(f"pool{number // 2}", nn.MaxPool2d(2))
            channels = width
        self.flatten = nn.Flatten()
        self.fc1 = Maxout(nn.Linear(channels * 4 * 4, 512), PIECES)
        self.fc2 = Maxout(nn.Linear(self.fc1.units, 128), PIECES)
        self.fc3 = nn.Linear(self.fc2.units, 10)


def new(network: str, data: Dataset, seed: int) -> nn.Module:
    """A network with its initial values."""
    if network == "lenet5":
        return create("maxout_lenet5", data.input_shape, data.outputs, seed=seed)
    with seeded(seed):
        return MaxoutVGG()


def weights_left(model: nn.Module) -> int:
    """The weights that are not zero, without biases and norms."""
    return sum(int((parameter != 0).sum()) for parameter in model.parameters() if parameter.dim() > 1)


def one_round(removing: dict[str, Any]) -> Recipe:
    """The recipe that removes so and trains."""
    return Recipe.parse({**removing, "retrain": RETRAIN})


NOTHING = {"allocation": "none", "schedule": "allocation_decides"}


def a_piece_less(targets: list[str], pieces: int) -> dict[str, Any]:
    """What takes the least used of so many pieces of every unit of these layers."""
    return {
        "score": "maxout_wins",
        "granularity": "maxout_piece",
        "targets": targets,
        "allocation": "per_layer",
        "calibration": 4_000,
        "schedule": {"name": "one_shot", "sparsity": 1 / pieces},
    }


def down_to(model: nn.Module, left: int) -> dict[str, Any]:
    """What leaves so many weights, the largest of all layers."""
    there = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    return {"score": "magnitude", "schedule": {"name": "one_shot", "sparsity": 1 - left / there}}


def rounds(model: nn.Module, data: Dataset, way: str, steps: list[int], seed: int) -> Iterator[nn.Module]:
    """The network after each round.

    Args:
        steps: the weights that are left after each round where weights go.
    """
    for number, left in enumerate(steps):
        of_pieces = WAYS[way] if number < PIECES - 1 else None
        if of_pieces:
            recipe = one_round(a_piece_less(of_pieces, PIECES - number))
        else:
            recipe = one_round(NOTHING if way == "unpruned" else down_to(model, left))
        pruned = prune(model, recipe, data.train, seed=10 * seed + number)
        if of_pieces:
            pruned.shrink(data.train.inputs[:32])
        yield model


def main() -> None:
    """Write every round of every way."""
    torch.set_num_threads(1)
    with (FOLDER / "combined.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("network", "method", "seed", "round", "weights", "share_left", "test_accuracy"))
        for network, (settings, ways) in NETWORKS.items():
            data = load(settings)
            for seed in range(SEEDS):
                dense = new(network, data, seed)
                train(dense, data.train, DENSE, seed=seed)
                for line in lines(dense, data, ways, seed):
                    writer.writerow((network, *line))
                    file.flush()
                    print(network, *line, flush=True)


def lines(dense: nn.Module, data: Dataset, ways: Iterable[str], seed: int) -> Iterator[tuple[Any, ...]]:
    """(method, seed, round, weights left, their share, test accuracy) of the dense network and every way."""
    whole = weights_left(dense)

    def line(method: str, number: int, model: nn.Module) -> tuple[Any, ...]:
        left = weights_left(model)
        accuracy = evaluate(model, data.test.inputs, data.test.targets, task="classification").accuracy
        return method, seed, number, left, round(left / whole, 4), accuracy

    yield line("dense", 0, dense)
    fc1 = dense.get_submodule("fc1.layer").weight.numel()
    steps = [whole - number * fc1 // PIECES for number in range(1, PIECES)]
    steps += [round(share * whole) for share in LEFT]
    for way in ways:
        model = copy.deepcopy(dense)
        for number, after in enumerate(rounds(model, data, way, steps, seed), start=1):
            yield line(way, number, after)


if __name__ == "__main__":
    main()
