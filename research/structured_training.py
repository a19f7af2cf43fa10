"""Neurons that go during the training: a multilayer perceptron, by its width and the amount of data.

`python research/structured_training.py` writes docs/results/structured-mlp/training.csv. Every way
has the same number of epochs in all, the same data in the same order, and one optimizer as long as trained
values are kept. With "inside the training" a share of the neurons of every hidden layer goes every few
epochs, the last at the end, and nothing is trained after it; with "at once" all go halfway. What goes is
taken out, so that training costs what the network has left; the optimizer's averages of what stays go on.
"""

import argparse
import copy
import csv
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit import Recipe, prune
from prunekit.data import Dataset, DataSettings, load
from prunekit.graph.surgery import taken
from prunekit.measure import evaluate
from prunekit.models import create
from prunekit.parts.retrain import redraw
from prunekit.parts.schedule import Geometric, Linear, Schedule
from prunekit.seeds import derive
from prunekit.training import State, Training, TrainingPart, initial_optimizer_state, train

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "structured-mlp" / "training.csv"
PARTS, ROUNDS, HALFWAY = 10, 5, 5
"""The parts of the training, the rounds inside it, and after which part all goes at once."""
PART = Training(epochs=2, batch_size=32, lr=0.001)
WIDTHS, SHARES = (30, 100, 300, 1000), (0.5, 0.9)
DATA = {"mnist": (300, 1000, 3000), "digits": (None,), "breast_cancer": (None,)}
"""Of each set, how many training examples; None for all that its split leaves, 0.54 of the whole set."""
LOOKED_INTO = ("mnist", 300)
"""The set and the width at which the controls of the form inside the training are run as well."""
COLUMNS = (
    *("data", "method", "seed", "width", "examples", "sparsity", "parameters", "test_accuracy"),
    *("gained_accuracy", "train_seconds", "times_as_long", "removal_seconds"),
)


@dataclass(frozen=True)
class Course:
    """A network under way: its optimizer's state, seconds of the processor, and units before any went."""

    model: nn.Module
    state: State
    trained: float = 0.0
    removing: float = 0.0

    def on(self, data: Dataset, seed: int, parts: range) -> "Course":
        """The same, trained for some parts more; this one stays as it is."""
        after = copy.deepcopy(self)
        began = time.process_time()
        for number in parts:
            train(after.model, data.train, PART, seed=seed, part=TrainingPart(number, PARTS, after.state))
        return replace(after, trained=self.trained + time.process_time() - began)

    def without(
        self, left: Mapping[str, int], data: Dataset, seed: int, score: str, values: State | None = None
    ) -> "Course":
        """The same, with so many units left of each layer, in the values of another state if one is given."""
        after = copy.deepcopy(self)
        began = time.process_time()
        pruned = prune(after.model, removing(after.model, left, score), seed=seed)
        if values is not None:
            after.model.load_state_dict(values)
            pruned.masks.apply(after.model)
        stays = pruned.shrink(data.train.inputs[:8]).axes
        state = {
            key: taken(value, stays.get(key.rpartition("/")[0], {}) if value.dim() else {})
            for key, value in after.state.items()
        }
        return replace(after, state=state, removing=self.removing + time.process_time() - began)


def widths(model: nn.Module) -> dict[str, int]:
    """The units of every hidden layer."""
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    return {name: each.out_features for name, each in list(layers.items())[:-1]}


def removing(model: nn.Module, left: Mapping[str, int], score: str) -> Recipe:
    """Layer by layer, the units of the smallest L1 norm of what still comes in, or a random choice."""
    shares = {name: 1 - left[name] / units for name, units in widths(model).items()}
    return Recipe.parse(
        {
            "score": score,
            "granularity": "unit",
            "allocation": {"name": "manual", "sparsities": shares},
            "schedule": "allocation_decides",
            "order": "forward",
        }
    )


def left_of(before: Mapping[str, int], share: float) -> dict[str, int]:
    """What is left of every layer when this share of its units, rounded down to whole ones, is gone."""
    return {name: units - int(share * units + 1e-9) for name, units in before.items()}


def inside(
    start: Course,
    data: Dataset,
    seed: int,
    schedule: Schedule,
    *,
    score: str = "magnitude",
    new: bool = False,
) -> Course:
    """A share after every few parts, the last one at the end; by default one optimizer over all of it."""
    course, before, parts = start, widths(start.model), PARTS // ROUNDS
    for number, share in enumerate(schedule.levels(sum(before.values()))):
        assert share is not None
        course = course.on(data, seed, range(number * parts, (number + 1) * parts))
        course = course.without(left_of(before, share), data, seed + number, score)
        if new:
            course = replace(course, state=initial_optimizer_state(course.model, PART))
    return course


def ways(start: Course, data: Dataset, seed: int, looked_into: bool) -> Iterator[tuple[str, float, Course]]:
    """Every form: its name, the share of the units that goes, and where it comes to."""
    halfway = start.on(data, seed, range(HALFWAY))
    yield "unpruned", 0.0, halfway.on(data, seed, range(HALFWAY, PARTS))
    yield "unpruned, half as long", 0.0, halfway
    initial = copy.deepcopy(start.model.state_dict())
    for share in SHARES:
        equal = Linear(sparsity=share, steps=ROUNDS)
        yield "inside, equal numbers", share, inside(start, data, seed, equal)
        falling = Geometric(sparsity=share, steps=ROUNDS)
        yield "inside, equal shares of what is left", share, inside(start, data, seed, falling)
        if looked_into:
            yield "inside, a new optimizer each time", share, inside(start, data, seed, equal, new=True)
            yield "inside, random neurons", share, inside(start, data, seed, equal, score="random")
        left = left_of(widths(start.model), share)
        for name, values in (("trained", None), ("initial", initial), ("new", initial)):
            course = halfway.without(left, data, seed, "magnitude", values)
            if values is not None:
                course = replace(course, state=initial_optimizer_state(course.model, PART))
            if name == "new":
                redraw(course.model, derive(seed, name))
            yield f"at once, {name} values", share, course.on(data, seed, range(HALFWAY, PARTS))


def rows(name: str, limit: int | None, width: int, seed: int) -> Iterator[Sequence[Any]]:
    """The lines of the table for one set, amount of it, network and seed; each seed has its own split."""
    data = load(DataSettings(name=name, limit=limit, test=0.4, seed=seed))
    model = create({"name": "mlp", "hidden": (width, width // 2)}, data.input_shape, data.outputs, seed=seed)
    start = Course(model, initial_optimizer_state(model, PART))
    unpruned: tuple[float, float] | None = None
    for method, share, course in ways(start, data, seed, (name, width) == LOOKED_INTO):
        found = evaluate(course.model, data.test.inputs, data.test.targets, task="classification").accuracy
        assert found is not None
        unpruned = unpruned or (found, course.trained)
        parameters = sum(parameter.numel() for parameter in course.model.parameters())
        gained, times = found - unpruned[0], course.trained / unpruned[1]
        shown = [f"{each:.4f}" for each in (found, gained, course.trained, times, course.removing)]
        yield name, method, seed, width, len(data.train), share, parameters, *shown


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, nargs="+", default=list(DATA))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with given.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        cells = itertools.product(given.data, given.seeds, WIDTHS)
        for name, seed, width, limit in ((*cell, limit) for cell in cells for limit in DATA[cell[0]]):
            for row in rows(name, limit, width, seed):
                writer.writerow(row)
            file.flush()
            print(*row, flush=True)


if __name__ == "__main__":
    main()
