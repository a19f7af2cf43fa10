"""Every score with every allocation and granularity, half of three small networks, beside random removal.

`python research/sound_defaults.py` writes a table a network to docs/results/sound-defaults: the test accuracy
in % right after half of the elements went in several steps (empty: refused). It prints how many recipes were
refused for which reason, and which of the others are not better than random removal. From these tables
counts.csv and defaults.csv follow, which `python research/sound_defaults.py summary` writes alone.
"""

from __future__ import annotations

import copy
import csv
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit import Recipe, prune
from prunekit.data import Dataset, DataSettings, load
from prunekit.errors import PrunekitError
from prunekit.measure import evaluate
from prunekit.parts.scores import Score
from prunekit.training import Training, train

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "sound-defaults"
SEEDS = 3
DRAWS = 5
"""Random removals of each network, of which the mean counts: one is up to 30 points off another."""
TRAINING = Training(epochs=20, lr=0.003, weight_decay=0.001, decay="cosine")
CALIBRATION = 256
STEPS = {"weight": 5, "n:m": 2, "unit": 16}
"""Steps in which half goes, each with scores of its own: units that stand in for each other are not all taken
at once. A pattern of four loses one weight of each group in a step: more than two steps are refused."""
DECIDED = "allocation_decides"

ALLOCATIONS: Mapping[str, Mapping[str, Any] | None] = {
    "global": {"name": "global"},
    "per_layer": {"name": "per_layer"},
    "erk": {"name": "erk"},
    "owl": {"name": "owl"},
    "sensitivity": {"name": "sensitivity"},
    "budget": {"name": "budget", "of": "parameters"},
    "budget, per_layer": {"name": "budget", "of": "parameters", "share": "per_layer"},
    "below_mean": {"name": "below_mean"},
    "threshold": {"name": "threshold", "q": 0.6745},
}
"""All but `none`, which removes nothing, and `recorded`, which takes what another one took. The quantile of
the threshold takes half of normal weights."""

OWN = ("below_mean", "threshold")
"""These decide the amount themselves; the random control removes as many of each layer."""

SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "wanda": {"wanda": {}, "wanda, layer": {"within": "layer"}},
    "magnitude": {"magnitude": {}, "magnitude, layer_norm": {"relative_to": "layer_norm"}},
    "grad_cam": {"grad_cam": {}, "grad_cam, normalize": {"normalize": True}},
    "feature_taylor": {"feature_taylor": {}, "feature_taylor, raw": {"normalize": False}},
    "layer_obs": {"layer_obs": {}, "layer_obs, nothing": {"relative_to": "nothing"}},
    "movement": {"movement": {"training": TRAINING.to_dict()}},
    "oracle": {"oracle": {"error": "cross_entropy"}},
    "unit_taylor": {"unit_taylor": {"error": "cross_entropy"}},
    "activation": {
        f"activation, {what}": {"what": what} for what in ("nonzeros", "mean", "variance", "irreplaceable")
    },
}
"""Scores with settings that matter for what they may be compared with."""


class Block(nn.Module):
    """Self-attention and an MLP, each behind a layer norm and added on."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.project = (nn.Linear(width, width) for _ in range(4))
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same."""
        y = self.norm1(x)
        q, k, v = (
            torch.unflatten(part(y), 2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        return x + self.contract(F.relu(self.expand(self.norm2(x))))


class Encoder(nn.Module):
    """A transformer encoder that reads the rows of an image."""

    def __init__(self, width: int = 32, heads: int = 4, blocks: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) to (N, 10)."""
        x = self.embed(images.flatten(1, 2)) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def mlp() -> nn.Module:
    """64-80-48-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 48), nn.ReLU(), nn.Linear(48, 10)
    )


def convnet() -> nn.Module:
    """Two convolutions with batch norms and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"mlp": mlp, "convnet": convnet, "encoder": Encoder}
GRANULARITIES = ("weight", "n:m", "unit")


def scores() -> Iterator[tuple[str, dict[str, Any]]]:
    """All of the package, by what they are called in the tables."""
    for name in ("random", *(each for each in sorted(Score.own_members()) if each != "random")):
        for label, settings in SETTINGS.get(name, {name: {}}).items():
            yield label, {"name": name, **settings}


def recipe(score: Mapping[str, Any], granularity: str, allocation: str, network: str) -> Recipe:
    """Half of everything, nothing after it."""
    chosen = ALLOCATIONS[allocation]
    half = {"name": "linear", "sparsity": 0.5, "steps": STEPS[granularity]}
    rounds = {"name": DECIDED} if allocation in OWN else half
    # one input channel cannot be cut into groups of four
    ignore = ["0"] if network == "convnet" and granularity == "n:m" else []
    return Recipe.parse(
        {
            "score": dict(score),
            "granularity": granularity,
            **({} if chosen is None else {"allocation": dict(chosen)}),
            "schedule": rounds,
            "calibration": CALIBRATION,
            "ignore": ignore,
        }
    )


def main(*networks: str) -> None:
    """Write the tables of these networks, or of all three."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = load(DataSettings(name="digits", test=0.4))
    for network in networks or NETWORKS:
        accuracies, reasons = measured(network, data)
        with (FOLDER / f"{network}.csv").open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            columns = dict.fromkeys(name for found in accuracies.values() for name in found)
            table.writerow(("granularity", "score", "seed", *columns))
            for place, found in accuracies.items():
                table.writerow((*place, *(found.get(column, "") for column in columns)))
        print(network, *(f"{count:4} {reason}" for reason, count in reasons.most_common()), sep="\n")
    summarise()


def summarise() -> None:
    """Write how many recipes of each network are better than random removal, and how the defaults of the
    scores are, from the tables of the networks that there are; and print all recipes that are not better."""
    found = {name: table_of(name) for name in NETWORKS if (FOLDER / f"{name}.csv").exists()}
    with (FOLDER / "counts.csv").open("w", newline="") as file:
        counts = csv.writer(file, lineterminator="\n")
        counts.writerow(("network", "kind", "seed", "accepted", "better", "not_better", "clearly_worse"))
        for name, accuracies in found.items():
            pairs = list(compared(accuracies))
            for kind in ("weight", "unit"):
                own = [each for each in pairs if each.kind == kind]
                worse = [each for each in own if not each.better]
                clearly = sum(each.clearly_worse for each in worse)
                counts.writerow((name, kind, 0, len(own), len(own) - len(worse), len(worse), clearly))
            print(name, *(each for each in pairs if not each.better), sep="\n")
    with (FOLDER / "defaults.csv").open("w", newline="") as file:
        defaults = csv.writer(file, lineterminator="\n")
        columns = [f"{name}{which}" for name in found for which in ("", " at random")]
        defaults.writerow(("kind", "score", "allocation", "seed", *columns))
        for kind, (label, score) in product(("weight", "unit"), scores()):
            try:
                half = {"name": "linear", "sparsity": 0.5, "steps": STEPS[kind]}
                chosen = Recipe.parse({"score": score, "granularity": kind, "schedule": half})
                allocation = chosen.allocation.name
            except PrunekitError:
                continue
            for seed in range(SEEDS):
                values = [
                    accuracies.get((kind, which, seed), {}).get(allocation, "")
                    for accuracies in found.values()
                    for which in (label, "random")
                ]
                if any(values[::2]):
                    defaults.writerow((kind, label, allocation, seed, *values))


def table_of(network: str) -> dict[tuple[str, str, int], dict[str, str]]:
    """A network's table, as it was written."""
    with (FOLDER / f"{network}.csv").open(newline="") as file:
        return {
            (line.pop("granularity"), line.pop("score"), int(line.pop("seed"))): {
                name: value for name, value in line.items() if value
            }
            for line in csv.DictReader(file)
        }


def measured(
    network: str, data: Dataset
) -> tuple[Mapping[tuple[str, str, int], Mapping[str, str]], Counter[str]]:
    """Accuracies by granularity, score and seed, then allocation; how often which reason was given."""
    accuracies: defaultdict[tuple[str, str, int], dict[str, str]] = defaultdict(dict)
    reasons: Counter[str] = Counter()
    fresh, dense = [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        fresh.append(NETWORKS[network]())
        dense.append(copy.deepcopy(fresh[seed]))
        train(dense[seed], data.train, TRAINING, seed=seed)
        whole = f"{accuracy(dense[seed], data):.2f}"
        accuracies["", "dense", seed] = dict.fromkeys(ALLOCATIONS, whole)
    for granularity, (label, score), allocation in product(GRANULARITIES, scores(), ALLOCATIONS):
        if granularity == "unit" and allocation == "erk":  # that of units is per_layer
            continue
        try:
            chosen = recipe(score, granularity, allocation, network)
            of_patterns = granularity == "n:m"
            kind, name = ("weight", f"2:4, {allocation}") if of_patterns else (granularity, allocation)
            for seed in range(SEEDS):
                found = accuracies[kind, label, seed]
                begun = (fresh if chosen.warm_ups else dense)[seed]
                if label == "random":
                    found[name] = at_random(dense[seed], chosen, data, seed)
                    continue
                pruned = prune(copy.deepcopy(begun), chosen, data.train, seed=seed)
                found[name] = f"{accuracy(pruned.model, data):.2f}"
                if allocation in OWN:  # of the network that was trained as long
                    control = pruned.random_control()
                    found[f"random as {name}"] = at_random(dense[seed], control, data, seed)
        except PrunekitError as error:
            reasons[str(error).replace(f"{score['name']!r}", "SCORE")] += 1
    return accuracies, reasons


def at_random(network: nn.Module, chosen: Recipe, data: Dataset, seed: int) -> str:
    """The mean accuracy over the draws."""
    draws = (
        prune(copy.deepcopy(network), chosen, data.train, seed=DRAWS * seed + draw) for draw in range(DRAWS)
    )
    return f"{mean(accuracy(pruned.model, data) for pruned in draws):.2f}"


def accuracy(network: nn.Module, data: Dataset) -> float:
    """On the test part, in %."""
    return 100 * evaluate(network, data.test.inputs, data.test.targets, task="classification").accuracy


@dataclass(frozen=True)
class Compared:
    """A recipe beside random removal with the same allocation: mean accuracies in %, and their deviations."""

    kind: str
    score: str
    allocation: str
    found: tuple[float, float]
    at_random: tuple[float, float]

    @property
    def better(self) -> bool:
        """Whether its mean is above that of random removal."""
        return self.found[0] > self.at_random[0]

    @property
    def clearly_worse(self) -> bool:
        """Whether it is below by more than both deviations together."""
        return self.at_random[0] - self.found[0] > self.found[1] + self.at_random[1]

    def __str__(self) -> str:
        """In one line."""
        clearly = ", clearly" if self.clearly_worse else ""
        means = f"{self.found[0]:.1f}, at random {self.at_random[0]:.1f}{clearly}"
        return f"  {self.kind}, {self.score}, {self.allocation}: {means}"


def compared(accuracies: Mapping[tuple[str, str, int], Mapping[str, str]]) -> Iterator[Compared]:
    """All recipes that were accepted, beside random removal."""
    means: dict[tuple[str, str, str], tuple[float, float]] = {}
    for kind, label, seed in accuracies:
        if seed == 0 and kind:
            for name in accuracies[kind, label, 0]:
                values = [float(accuracies[kind, label, each][name]) for each in range(SEEDS)]
                means[kind, label, name] = mean(values), stdev(values)
    for (kind, label, name), found in means.items():
        own = (kind, label, f"random as {name}")
        control = means.get(own) or means.get((kind, "random", name))
        if label != "random" and not name.startswith("random as") and control is not None:
            yield Compared(kind, label, name, found, control)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    summarise() if sys.argv[1:] == ["summary"] else main(*sys.argv[1:])
