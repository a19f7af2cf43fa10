"""DeepRebirth on a small GoogLeNet and CIFAR-10: the accuracy that merged layers cost, and their time.

    python research/rebirth.py

Trains the network, merges its layers in several ways, and fine-tunes each beside the whole network, over as
many epochs. Every part adds its lines to accuracy.csv, blocks.csv, alone.csv and times.csv in
docs/results/rebirth; a part whose lines are there is not done again: without these files all is done anew.
With --networks a folder keeps the trained networks, so that an interrupted run goes on; with --scratch the
whole and the merged network are trained from new initial values as well, in one training, for scratch.csv.
"""

import argparse
import copy
import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.data import Dataset, DataSettings, load
from prunekit.measure import count, evaluate, latency, layer_times
from prunekit.merge import MergedBlock, MergeResult, fold_batch_norms, merge_layers, restore_batch_norms
from prunekit.models import create
from prunekit.saving import load_pretrained, save_pretrained
from prunekit.training import Training, train

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "rebirth"
SEEDS, MODEL = 3, {"name": "googlenet_small"}
DATA = DataSettings(name="cifar10", limit=10_000, validation=0.08, more_test=5_000)
TRAINING = Training.parse(
    {
        **{"epochs": 12, "batch_size": 64, "lr": 0.002, "decay": "cosine"},
        "augment": [{"name": "shift", "pixels": 2}, "flip"],
    }
)
TUNING = TRAINING.model_copy(update={"epochs": 6})
SLOW = TUNING.model_copy(update={"lr": TUNING.lr / 10})
"""New layers learn ten times as fast as this."""
EXAMPLES = 512
"""Images that new convolutions are fitted to, and that batch norms take their statistics from."""
JUDGED = 1_500
"""Validation images on which blocks are compared."""
BATCHES = {1: 15, 64: 4}
"""The sizes of the batches that are timed, and the passes of each in a round."""
ROUNDS = 8
"""Networks are timed in turns so often, and the least counts: the machine had other work at the same time."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How layers are merged and the network is fine-tuned.

    Attributes:
        merge: arguments of `merge_layers`.
        norms: whether batch norms are put back for the fine-tuning, in which all layers then learn as fast;
            without them new layers learn ten times as fast as the rest, as published.
    """

    merge: Mapping[str, Any] = field(default_factory=dict)
    norms: bool = True


WAYS = {
    "second streamline": Way({"only": ["conv3.conv"]}),
    "all blocks": Way(),
    "all blocks, without batch norms": Way(norms=False),
}
CHOSEN = "second streamline"


@dataclass(frozen=True)
class Table:
    """A CSV file that grows by the lines of one part after the other."""

    name: str

    @property
    def path(self) -> Path:
        """Of the file."""
        return FOLDER / f"{self.name}.csv"

    def has(self, **wanted: Any) -> bool:
        """Whether there is a line with these values."""
        if not self.path.exists():
            return False
        with self.path.open(newline="") as file:
            return any(
                all(row[key] == str(value) for key, value in wanted.items()) for row in csv.DictReader(file)
            )

    def add(self, rows: list[Row]) -> None:
        """Append lines, under a heading if they are the first."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)
        for row in rows:
            print(*row.values(), flush=True)


ACCURACY, BLOCKS, ALONE, TIMES, SCRATCH = (
    Table(name) for name in ("accuracy", "blocks", "alone", "times", "scratch")
)


@cache
def data() -> Dataset:
    """CIFAR-10, the same images for all seeds."""
    return load(DATA)


def fresh(seed: int) -> nn.Module:
    """The network with its initial values, in the memory layout that is fastest on a CPU."""
    model = create(MODEL, data().input_shape, data().outputs, seed=seed)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained(seed: int, kept: Path | None) -> nn.Module:
    """The network before anything is merged, from the folder where it is there."""
    model = fresh(seed)
    folder = None if kept is None else kept / f"{MODEL['name']}-{seed}"
    if folder is not None and folder.exists():
        return load_pretrained(folder, model)
    train(model, data().train, TRAINING, seed=seed)
    if folder is not None:
        save_pretrained(model, folder)
    return model


def merged(model: nn.Module, way: Mapping[str, Any], seed: int) -> MergeResult:
    """The network with merged layers, fitted in closed form."""
    return merge_layers(model, data().train, examples=EXAMPLES, training={"epochs": 0}, seed=seed, **way)


def restored(result: MergeResult) -> None:
    """Batch norms behind the layers of a merged network, as it is trained."""
    restore_batch_norms(result.model, result.folds, data().train.inputs[:EXAMPLES])


def judged(model: nn.Module, network: str, state: str, seed: int) -> Row:
    """What a network is worth on the test images, and what it takes."""
    test = data().test
    quality = evaluate(model, test.inputs, test.targets, task=data().task)
    counts = count(model, test.inputs[:1])
    return {
        **{"network": network, "state": state, "seed": seed},
        **{"test_accuracy": round(quality.accuracy, 5), "test_loss": round(quality.loss, 4)},
        **{"macs": counts.macs, "parameters": counts.parameters},
    }


def fitted(block: MergedBlock, network: str, seed: int) -> Row:
    """What a block was, and its error."""
    return {
        **{"network": network, "seed": seed, "convolution": block.convolution},
        **{"absorbed": " ".join(block.absorbed), "error": round(block.error, 4)},
    }


def whole(base: nn.Module, seed: int) -> None:
    """The network as it is trained, and trained on as long as those with merged layers."""
    if not ACCURACY.has(network="whole", seed=seed):
        model = copy.deepcopy(base)
        rows = [judged(model, "whole", "trained", seed)]
        train(model, data().train, TUNING, seed=seed + 1)
        ACCURACY.add([*rows, judged(model, "whole", "fine-tuned", seed)])


def tuned(base: nn.Module, network: str, seed: int) -> None:
    """The network with merged layers, before and after the fine-tuning."""
    if ACCURACY.has(network=network, seed=seed):
        return
    way = WAYS[network]
    result = merged(copy.deepcopy(base), way.merge, seed)
    blocks = [fitted(each, network, seed) for each in result.blocks]
    rows = [judged(result.model, network, "merged", seed)]
    if way.norms:
        restored(result)
        train(result.model, data().train, TUNING, seed=seed + 1)
        fold_batch_norms(result.model, data().test.inputs[:2])
    else:
        train(result.model, data().train, SLOW, loop=result.loop(), seed=seed + 1)
    BLOCKS.add(blocks)
    ACCURACY.add([*rows, judged(result.model, network, "fine-tuned", seed)])


def from_scratch(base: nn.Module, seed: int) -> None:
    """The whole and the chosen merged network from new initial values, over all epochs in one training."""
    for network in ("whole", CHOSEN):
        if SCRATCH.has(network=network, seed=seed):
            continue
        model = copy.deepcopy(base)
        if network != "whole":
            result = merged(model, WAYS[network].merge, seed)
            restored(result)
            model = result.model
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
        epochs = (TRAINING.epochs or 0) + (TUNING.epochs or 0)
        train(model, data().train, TRAINING.model_copy(update={"epochs": epochs}), seed=seed)
        fold_batch_norms(model, data().test.inputs[:2])
        SCRATCH.add([judged(model, network, "from scratch", seed)])


def alone(base: nn.Module, seed: int) -> None:
    """Each block merged by itself, and the time that each network takes."""
    if TIMES.has(seed=seed):
        return
    few = data().validation.head(JUDGED)

    def accuracy(model: nn.Module) -> float:
        return round(evaluate(model, few.inputs, few.targets, task=data().task).accuracy, 5)

    folded = copy.deepcopy(base)
    fold_batch_norms(folded, data().test.inputs[:2])
    networks = {"whole": base, "whole, batch norms folded": folded}
    for name in ("all blocks", CHOSEN):
        networks[name] = merged(copy.deepcopy(base), WAYS[name].merge, seed).model
    every = merged(copy.deepcopy(base), {}, seed).blocks
    nothing = {"convolution": "none", "absorbed": "", "error": "", "validation_accuracy": accuracy(base)}
    rows: list[Row] = [{"network": "whole", "seed": seed, **nothing}]
    for block in every:
        result = merged(copy.deepcopy(base), {"only": [block.convolution]}, seed)
        networks[name := f"{block.convolution} alone"] = result.model
        rows.append({**fitted(result.blocks[0], name, seed), "validation_accuracy": accuracy(result.model)})
    ALONE.add(rows)
    TIMES.add([{**row, "seed": seed} for row in timed(networks)])


def timed(networks: Mapping[str, nn.Module]) -> list[Row]:
    """Milliseconds of one pass on one thread, the least over rounds: of all, and of each kind of layers.

    Of all layers also how many times as fast as the first of the networks.
    """
    images = data().test.inputs[: max(BATCHES)].contiguous(memory_format=torch.channels_last)
    least: dict[tuple[str, int, str], float] = {}
    for _ in range(ROUNDS):
        for name, model in networks.items():
            for batch, runs in BATCHES.items():
                found = {"all": latency(model, images[:batch], warmup=2, runs=runs).min}
                if not name.endswith(" alone"):
                    found |= layer_times(model, images[:batch], warmup=1, runs=runs)
                for kind, seconds in found.items():
                    place = name, batch, kind
                    least[place] = min(seconds, least.get(place, seconds))
    first = next(iter(networks))
    return [
        {
            **{"network": name, "batch": batch, "layers": kind, "milliseconds": round(1000 * seconds, 4)},
            "times_as_fast": round(least[first, batch, kind] / seconds, 3) if kind == "all" else "",
        }
        for (name, batch, kind), seconds in least.items()
    ]


def main() -> None:
    """Do what is not done yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--networks", type=Path)
    parser.add_argument("--scratch", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in range(given.seeds):
        base = trained(seed, given.networks)
        alone(base, seed)
        whole(base, seed)
        for network in WAYS:
            tuned(base, network, seed)
        if given.scratch:
            from_scratch(base, seed)


if __name__ == "__main__":
    main()
