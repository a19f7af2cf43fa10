"""Removal by correlation in a LeNet with a locally connected layer, and what is left trained from scratch.

`python research/correlation_lenet5.py` writes docs/results/correlation-lenet5/results.csv. One layer after
the other loses the same share of its weights, the last layer first, and the whole network is trained for an
epoch after each; every one of these steps is a line. What correlation leaves at the end is then trained for
as many epochs as the dense network and all steps together, twice: from the values that it has, and the same
structure from new ones.
"""

import copy
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit import Recipe, prune
from prunekit.data import DataSettings, load
from prunekit.masks import Masks
from prunekit.measure import evaluate
from prunekit.parts.retrain import redraw
from prunekit.seeds import seeded
from prunekit.training import Training, train

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "correlation-lenet5"
SEEDS, IMAGES, LAYERS = 3, 5_000, 5
DENSE = {"epochs": 10, "batch_size": 64, "lr": 0.001, "decay": "cosine"}
STEP = {"epochs": 1, "batch_size": 64, "lr": 0.0005, "decay": "cosine"}
REMOVED = (0.75, 0.88)
"""Shares of every layer; the source keeps 26 to 76 % for its best networks, and 12 % at no loss."""

CHOICES: dict[str, dict[str, Any]] = {
    "random": {"score": "random"},
    "magnitude": {"score": "magnitude"},
    "correlation": {"score": "correlation", "selection": "correlated_halves"},
}


class LocallyConnected(nn.Module):
    """A convolution whose weights are not shared: each position of the output has a kernel of its own.

    The positions are groups of a convolution over a single position, so that all that is known of
    convolutions holds of it. The ReLU that follows is part of it.

    Args:
        channels: of the input.
        side: of the input, in pixels.
        maps: outputs at each position.
        kernel: side of the kernels, in pixels.
    """

    def __init__(self, channels: int, side: int, maps: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.side = side - kernel + 1
        positions = self.side**2
        self.layer = nn.Conv1d(positions * channels * kernel**2, positions * maps, 1, groups=positions)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, maps, height, width) for (N, channels, side, side)."""
        windows = F.unfold(x, self.kernel).mT  # (N, positions, channels x kernel)
        found = self.act(self.layer(windows.flatten(1).unsqueeze(2)))
        return found.view(*windows.shape[:2], -1).mT.unflatten(2, (self.side, self.side))


class LocalLeNet(nn.Sequential):
    """Two 5x5 convolutions, a locally connected 3x3 layer and two linear ones: 87,786 weights for digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1, self.pool1 = nn.Conv2d(1, 10, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.act2, self.pool2 = nn.Conv2d(10, 32, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.local3 = LocallyConnected(32, 4, 48, 3)
        self.flatten = nn.Flatten()
        self.fc4, self.act4 = nn.Linear(192, 120), nn.ReLU()
        self.fc5 = nn.Linear(120, 10)


def recipe(choice: dict[str, Any], removed: float) -> Recipe:
    """The recipe that takes a share of one layer after the other, from the top down."""
    downwards = {
        "allocation": "per_layer",
        "order": "backward",
        "calibration": 2_048,
        "schedule": {"name": "one_shot", "sparsity": removed},
    }
    return Recipe.parse({**choice, **downwards, "retrain": {"name": "fine_tune", "training": STEP}})


def unpruned() -> Recipe:
    """The recipe that removes nothing and trains as long."""
    schedule = {"name": "allocation_decides", "steps": LAYERS}
    retrain = {"name": "fine_tune", "training": STEP}
    return Recipe.parse({"allocation": "none", "schedule": schedule, "retrain": retrain})


def train_structure(model: nn.Module, masks: Masks, data: Any, seed: int) -> None:
    """Train what is left of a network as long as all before."""
    masks.apply(model)
    train(model, data, Training.parse({**DENSE, "epochs": DENSE["epochs"] + LAYERS}), seed=seed, masks=masks)


def lines(seed: int) -> Iterator[tuple[Any, ...]]:
    """By method, share removed and step: (method, removed, seed, step, layer, weights kept, accuracy)."""
    data = load(DataSettings(name="mnist", limit=IMAGES))

    def accuracy(model: nn.Module) -> float:
        return evaluate(model, data.test.inputs, data.test.targets, task="classification").accuracy

    with seeded(seed):
        dense = LocalLeNet()
    train(dense, data.train, Training.parse(DENSE), seed=seed)
    total = sum(parameter.numel() for parameter in dense.parameters() if parameter.dim() > 1)
    yield "dense", 0.0, seed, 0, "", total, accuracy(dense)
    measured = {"evaluate": lambda model: {"accuracy": accuracy(model)}}
    longer = prune(copy.deepcopy(dense), unpruned(), data.train, seed=seed, **measured)
    for record in longer.history:
        yield "unpruned", 0.0, seed, record.step, "", total, record.measured["accuracy"]
    for removed in REMOVED:
        for label, choice in CHOICES.items():
            model = copy.deepcopy(dense)
            pruned = prune(model, recipe(choice, removed), data.train, seed=seed, **measured)
            before = {name: mask.numel() for name, mask in pruned.masks.items()}
            for record in pruned.history:
                changed = [name for name, kept in record.layers.items() if kept != before[name]]
                before = dict(record.layers)
                layer = changed[0].split(".")[0]
                yield label, removed, seed, record.step, layer, record.kept, record.measured["accuracy"]
            if label != "correlation":
                continue
            train_structure(model, pruned.masks, data.train, seed)
            yield "from these values", removed, seed, LAYERS, "", pruned.masks.kept, accuracy(model)
            redraw(model, seed=1_000 + seed)
            train_structure(model, pruned.masks, data.train, seed)
            yield "from scratch", removed, seed, LAYERS, "", pruned.masks.kept, accuracy(model)


def main() -> None:
    """Write every line."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("method", "removed", "seed", "step", "layer", "kept", "test_accuracy"))
        for seed in range(SEEDS):
            for line in lines(seed):
                writer.writerow(line)
                file.flush()
                print(*line, flush=True)


if __name__ == "__main__":
    main()
