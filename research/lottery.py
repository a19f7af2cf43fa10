"""The lottery ticket by the step at which the validation loss is least: LeNet-300-100 and LeNet-5 on MNIST.

    python research/lottery.py fc

`fc` and `conv` write early.csv beside the pages of lottery-fc and lottery-conv. For every network that is
trained it has the step of the least validation loss, what the network is worth there and at the end, and the
step at which it is as good as the dense one ever is. A ticket's controls are given its batches: new values
differ from it in their values alone, a random mask in which weights of a layer are kept.
"""

import argparse
import copy
import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunekit import Recipe, prune
from prunekit.data import Dataset, DataSettings, load
from prunekit.masks import Masks
from prunekit.measure import Quality, evaluate
from prunekit.models import create
from prunekit.parts.regularize import Dropout
from prunekit.parts.retrain import redraw
from prunekit.seeds import derive
from prunekit.training import State, Training, train

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
SEEDS, DRAWS = 3, 3
EVERY = 100
"""Steps from one measurement of the validation loss to the next, as in the paper."""


@dataclass(frozen=True)
class Chain:
    """Rounds of pruning, back to the initial values after each.

    Attributes:
        rates: by layer, the share of what is left that goes in a round.
        rounds: those after which there is a training; between two of them as much goes at once.
        controls: those with controls.
        dropout: whether hidden activations are dropped, each with probability 0.5, in every training.
    """

    rates: Mapping[str, float]
    rounds: range
    controls: tuple[int, ...] = ()
    dropout: bool = False


@dataclass(frozen=True)
class Setup:
    """A network, its data, the number of optimizer steps in each training, and its chains."""

    model: str
    data: Mapping[str, Any]
    steps: int
    chains: Mapping[str, Chain]


ALIKE = {"conv1": 0.2, "conv2": 0.2, "fc1": 0.2, "fc2": 0.1}
SLOWER = {**ALIKE, "conv1": 0.1, "conv2": 0.1}
SETUPS = {
    "fc": Setup(
        "lenet_300_100",
        {"limit": 20_000, "validation": 1 / 12},
        3340,
        {"ticket": Chain({"fc1": 0.2, "fc2": 0.2, "fc3": 0.1}, range(1, 8), controls=(3, 7))},
    ),
    "conv": Setup(
        "lenet5",
        {"limit": 18_000, "validation": 1 / 30},
        900,
        {
            "ticket": Chain(SLOWER, range(2, 9, 2), controls=(6,)),
            "ticket, 20 % of the convolutions": Chain(ALIKE, range(2, 7, 2)),
            "ticket, dropout": Chain(SLOWER, range(2, 7, 2), dropout=True),
        },
    ),
}


def masks_of(model: nn.Module, score: str, chain: Chain, rounds: int, seed: int) -> Masks:
    """What is kept after so many rounds of a network in which all that went before is zero."""
    sparsities = {layer: 1 - (1 - rate) ** rounds for layer, rate in chain.rates.items()}
    allocation = {"name": "manual", "sparsities": sparsities}
    recipe = Recipe.parse({"score": score, "allocation": allocation, "schedule": "allocation_decides"})
    return prune(copy.deepcopy(model), recipe, seed=seed).masks


def quality(model: nn.Module, part: Any) -> Quality:
    """Of a classifier on a part of the data."""
    return evaluate(model, part.inputs, part.targets, task="classification")


def trained(
    model: nn.Module, data: Dataset, training: Training, masks: Masks, seed: int, goal: float | None
) -> dict[str, Any]:
    """Train a network in place under its masks; the columns of its row that follow from it.

    Args:
        goal: the validation loss to be reached; None for the least one.
    """
    assert training.iterations is not None
    losses: dict[int, float] = {}
    best: State = {}

    def look(step: int, state: State) -> None:
        loss = quality(model, data.validation).loss
        if loss < min(losses.values(), default=math.inf):
            best.update(state)
        losses[step] = loss

    masks.apply(model)
    moments = range(EVERY, training.iterations + 1, EVERY)
    train(model, data.train, training, seed=seed, masks=masks, checkpoints=moments, on_checkpoint=look)
    last = quality(model, data.test)
    then = copy.deepcopy(model)
    then.load_state_dict(best)
    least = min(losses.values())
    goal = least if goal is None else goal
    return {
        "best_step": next(step for step, loss in losses.items() if loss == least),
        "goal_step": next((step for step, loss in losses.items() if loss <= goal), ""),
        "validation_loss": least,
        "validation_accuracy": quality(then, data.validation).accuracy,
        "test_accuracy": quality(then, data.test).accuracy,
        "last_validation_loss": losses[moments[-1]],
        "last_test_accuracy": last.accuracy,
    }


def rows(setup: Setup, data: Dataset, seed: int) -> Iterator[dict[str, Any]]:
    """One for every network that is trained with this seed."""
    initial = create(setup.model, data.input_shape, data.outputs, seed=seed)
    goal: float | None = None

    def row(method: str, model: nn.Module, masks: Masks, chain: Chain, rounds: int, draw: int = 0) -> Any:
        nonlocal goal
        regularize = (Dropout(p=0.5, scale_with_density=False),) if chain.dropout else ()
        training = Training(iterations=setup.steps, batch_size=60, lr=0.0012, regularize=regularize)
        found = trained(model, data, training, masks, derive(seed, "round", rounds), goal)
        goal = found["validation_loss"] if goal is None else goal  # the first is the dense network
        kept = {"sparsity": masks.sparsity, "kept": masks.kept}
        return {"method": method, "draw": draw, "seed": seed, "step": rounds, **kept, **found}

    dense: dict[bool, nn.Module] = {}
    for label, chain in setup.chains.items():
        if chain.dropout not in dense:
            model = dense[chain.dropout] = copy.deepcopy(initial)
            whole = masks_of(model, "magnitude", chain, 0, seed)
            yield row("dense, dropout" if chain.dropout else "dense", model, whole, chain, 0)
        model = dense[chain.dropout]
        for rounds in chain.rounds:
            masks = masks_of(model, "magnitude", chain, rounds, seed)
            model = copy.deepcopy(initial)
            yield row(label, model, masks, chain, rounds)
            if rounds not in chain.controls:
                continue
            at_random = masks_of(initial, "random", chain, rounds, seed)
            yield row("random mask", copy.deepcopy(initial), at_random, chain, rounds)
            for draw in range(DRAWS):
                other = copy.deepcopy(initial)
                redraw(other, derive(seed, "redraw", draw))
                yield row("new values", other, masks, chain, rounds, draw)


def main() -> None:
    """Write the table of one network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=SETUPS)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    setup = SETUPS[given.network]
    data = load(DataSettings(name="mnist", **setup.data), given.data_dir)
    with (RESULTS / f"lottery-{given.network}" / "early.csv").open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for seed in range(SEEDS):
            for each in rows(setup, data, seed):
                if writer is None:
                    writer = csv.DictWriter(file, list(each), lineterminator="\n")
                    writer.writeheader()
                writer.writerow(each)
                file.flush()


if __name__ == "__main__":
    main()
