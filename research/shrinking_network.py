"""The experiments of "The Incredible Shrinking Neural Network" on MNIST, at the source's accuracies.

    python research/shrinking_network.py

Wolfe, Sharma and Raj (arXiv 1701.04465). Trains logistic networks of 100 and of 50 + 50 hidden units on 5,000
images until their accuracy on these is 0.998 and 1.000, and networks that tell one digit from all others,
until theirs is the source's (badly trained) and until it is 1.000 (perfectly). Units go in the order of each
criterion, ranked once or after every removal. Writes results.csv, summary.csv, sweeps.csv and figures into
docs/results/shrinking-network; with --figures only the figures, from these tables.
"""

import argparse
import copy
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn

from prunekit.data import DataSettings, load
from prunekit.graph import Chain, chain_of
from prunekit.losses import Loss, squared_error
from prunekit.models import create
from prunekit.report.layers import gain_sweep_drawing
from prunekit.report.style import PALETTE, Drawing, clean, drawing_style
from prunekit.training import Training, TrainingPart, initial_optimizer_state, train
from prunekit.units import diagonal_recursion, eliminate, gain_derivatives, gain_sweep, oracle_changes
from prunekit.units.oracle import Rank

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "shrinking-network"
SEEDS, IMAGES = 3, 5_000
STEPS, PARTS = 10, 1_500
"""How many steps are trained before the accuracy is looked at again, and how often at most."""

GAINS = torch.cat([torch.linspace(0, 2, 21), torch.arange(3, 11)]).double()
NETWORKS = {"1 layer": ([100], 0.998), "2 layers": ([50, 50], 1.0)}
DIGITS = {0: 0.9757, 1: 0.9881, 2: 0.9513}
"""The accuracies of the source's networks, for all digits and for one."""

SWEPT = ("oracle", "first order", "second order", "second order as published")
Row = dict[str, Any]


def softmax_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error behind a softmax."""
    return squared_error(outputs.softmax(1), targets)


def misclassified(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of wrong classes, in float64; what is equal in it is told apart by the squared error."""
    wrong = (outputs.argmax(1) != targets).double().mean()
    return wrong + 1e-6 * squared_error(outputs.double(), targets)


def logistic_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logistic outputs, one by one: squared error alone does not get to the last images."""
    wanted = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return F.binary_cross_entropy(outputs, wanted, reduction="sum") / len(outputs)


@dataclass(frozen=True)
class Task:
    """Images with their classes, (N, pixels) and (N,), what is trained, and what units are judged by."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Loss
    error: Loss


def pixels(images: Tensor) -> Tensor:
    """(N, 1, 28, 28) in [0, 1]: as before the data set was brought to mean 0 and variance 1."""
    low, high = images.min(), images.max()
    return ((images - low) / (high - low)).view(-1, 1, 28, 28)


def ten_digits() -> Task:
    """All digits on images of 20 x 20, as in the source."""
    data = load(DataSettings(name="mnist", limit=IMAGES))
    parts = [
        (F.adaptive_avg_pool2d(pixels(part.inputs), 20).flatten(1), part.targets)
        for part in (data.train, data.test)
    ]
    return Task(parts[0], parts[1], logistic_loss, squared_error)


def one_digit(digit: int, scale: float) -> Task:
    """One digit against the rest; pixels from 0 to the scale, 255 in the source."""
    data = load(DataSettings(name="mnist", limit=IMAGES))
    parts = [
        (scale * pixels(part.inputs).flatten(1), (part.targets == digit).long())
        for part in (data.train, data.test)
    ]
    return Task(parts[0], parts[1], F.cross_entropy, softmax_error)


@torch.no_grad()
def accuracy(model: nn.Module, examples: tuple[Tensor, Tensor]) -> float:
    """The share of the examples that are classified rightly."""
    return float((model(examples[0]).argmax(1) == examples[1]).float().mean())


def trained(
    model: nn.Module, task: Task, goals: tuple[float, ...], lr: float, seed: int
) -> Iterator[nn.Module]:
    """A copy of the network when its accuracy on the training images first reaches each of the goals."""
    training = Training(iterations=STEPS, batch_size=100, lr=lr)
    state = initial_optimizer_state(model, training)
    part = 0
    for goal in goals:
        while accuracy(model, task.train) < goal:
            if part == PARTS:
                raise SystemExit(f"seed {seed}: {goal} is not reached after {STEPS * PARTS} steps")
            train(
                model, task.train, training, seed=seed, part=TrainingPart(part, PARTS, state),
                loss=lambda _, outputs, targets, __: task.loss(outputs, targets),
            )  # fmt: skip
            part += 1
        yield copy.deepcopy(model).eval()


def ranks(chain: Chain, task: Task) -> dict[str, Rank]:
    """By criterion, what it predicts that the error rises by without each of the units that are left."""
    common = (chain, *task.train, task.error)
    return {
        "oracle": lambda kept: oracle_changes(*common, kept=kept),
        "first order": lambda kept: {
            name: found.first_order
            for name, found in gain_derivatives(*common, second=False, kept=kept).items()
        },
        "second order": lambda kept: {
            name: found.second_order for name, found in gain_derivatives(*common, kept=kept).items()
        },
        "second order as published": lambda kept: {
            name: found.second_order for name, found in diagonal_recursion(*common, kept=kept).items()
        },
        "misclassified": lambda kept: oracle_changes(chain, *task.train, misclassified, kept=kept),
    }


def courses(network: str, model: nn.Module, task: Task, seed: int, methods: tuple[str, ...]) -> Iterator[Row]:
    """The first network, then every removal in the order of each of the methods."""
    chain = chain_of(model, task.train[0][:2])
    names = [group.name for group in chain.groups]
    layers = list(model.children())
    at = {name: layers.index(getattr(model, name)) for name in names}
    with torch.no_grad():  # what the first hidden layer gives does not change
        first = [
            (nn.Sequential(*layers[: at[names[0]] + 2])(part[0]), part[1]) for part in (task.train, task.test)
        ]
    for method in ("dense", *methods):
        tail = copy.deepcopy(nn.Sequential(*layers[at[names[0]] + 2 :]))
        criterion, _, once = method.partition(", ")
        row = {"network": network, "method": method, "seed": seed}
        if method == "dense":
            error = float(task.error(model(task.train[0]), task.train[1]).detach())
            steps = [("", "", "", error)]
        else:
            rank: Any = ranks(chain, task)[criterion] if criterion != "oracle" else "oracle"
            found = eliminate(chain, *task.train, task.error, rank=rank, rerank=not once)
            steps = [(*found.order[i], found.predicted[i], found.errors[i]) for i in range(len(found.order))]
        for removed, (name, unit, predicted, error) in enumerate(steps, start=int(method != "dense")):
            if name:
                tail[at[name] - at[names[0]]].weight.data[:, unit] = 0  # of what reads the unit
            yield {
                **row, "removed": removed, "layer": name, "unit": unit,
                "predicted": f"{predicted:.6g}" if name else "", "error": f"{error:.6g}",
                "train_accuracy": round(accuracy(tail, first[0]), 6),
                "test_accuracy": round(accuracy(tail, first[1]), 6),
            }  # fmt: skip


def sweeps(model: nn.Module, task: Task, course: list[Row]) -> Iterator[Row]:
    """Of every tenth removal of a course, the error at each gain of its unit just before it."""
    chain = chain_of(model, task.train[0][:2])
    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in chain.groups}
    for row in course:
        place = row["layer"], row["unit"]
        if row["removed"] % 10 == 1:
            errors = gain_sweep(chain, *task.train, task.error, [place], gains=GAINS, kept=kept)[0].tolist()
            about = {key: row[key] for key in ("network", "method", "seed", "layer", "unit")}
            about["removed_before"] = row["removed"] - 1
            for gain, error in zip(GAINS.tolist(), errors, strict=True):
                yield {**about, "gain": round(gain, 2), "error": f"{error:.5g}"}
        kept[place[0]][place[1]] = False


def summary(rows: list[Row]) -> Iterator[Row]:
    """What a course says in one line."""
    by: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        by.setdefault((row["network"], row["method"], row["seed"]), []).append(row)
    for (network, method, seed), course in by.items():
        if method == "dense":
            continue
        start = by[network, "dense", seed][0]
        once = ", single pass" if method.endswith("single pass") else ""
        oracle = by[network, f"oracle{once}", seed]
        changes = [_by_unit(each) for each in (course, oracle)]
        layers = sorted({row["layer"] for row in oracle})
        units = [(row["layer"], row["unit"]) for row in course]
        others = [(row["layer"], row["unit"]) for row in oracle]
        errors = [float(row["error"]) for row in course]
        yield {
            "network": network, "method": method, "seed": seed,
            "first_layer": sum(name == layers[0] for name, _ in units[:30]),
            "last_layer": sum(name == layers[-1] for name, _ in units[:30]),
            "predicted_of_30": f"{sum(float(row['predicted']) for row in course[:30]):.5g}",
            "true_of_30": f"{errors[:30][-1] - float(start['error']):.5g}",
            "rank_correlation": _spearman([changes[0][u] for u in others], [changes[1][u] for u in others])
            if once else "",
            "same_as_oracle": next((i for i, u in enumerate(units) if u != others[i]), len(units)),
            "shared_of_30": len(set(units[:30]) & set(others[:30])),
            "error_with_accuracy": _spearman(errors, [-row["train_accuracy"] for row in course]),
            "not_above_start": _before(course, _errs_more(start)),
            "one_point_train": _before(course, _loses(start, "train_accuracy")),
            "one_point_test": _before(course, _loses(start, "test_accuracy")),
        }  # fmt: skip


def _by_unit(course: list[Row]) -> dict[tuple[str, int], float]:
    return {(row["layer"], row["unit"]): float(row["predicted"]) for row in course}


def _spearman(one: list[float], other: list[float]) -> float:
    return round(float(spearmanr(one, other).statistic), 4)


def _errs_more(start: Row) -> Any:
    return lambda row: float(row["error"]) > float(start["error"])


def _loses(start: Row, column: str) -> Any:
    return lambda row: start[column] - row[column] >= 0.01 - 1e-9


def _before(course: list[Row], happens: Any) -> int:
    return next((i for i, row in enumerate(course) if happens(row)), len(course))


def ten_digit_network(network: str, seed: int) -> tuple[list[Row], list[Row]]:
    """The courses of a network for all digits, and for the first seed sweeps along them."""
    hidden, goal = NETWORKS[network]
    task, criteria = ten_digits(), ("oracle", "first order", "second order", "misclassified")
    criteria += ("second order as published",) if len(hidden) > 1 else ()
    settings = {"hidden": hidden, "activation": "sigmoid", "output_activation": "sigmoid"}
    model = create({"name": "mlp", **settings}, [400], 10, seed=seed)
    model = next(trained(model, task, (goal,), 0.002, seed))
    methods = tuple(each + once for each in criteria for once in ("", ", single pass"))
    rows = list(courses(network, model, task, seed, methods))
    of = [[row for row in rows if row["method"] == method] for method in SWEPT if seed == 0]
    return rows, [line for course in of for line in sweeps(model, task, course)]


def one_digit_networks(digit: int, seed: int) -> tuple[list[Row], list[Row]]:
    """The courses of the networks for one digit."""
    rows: list[Row] = []
    for scale, goals in ((255, {"badly": DIGITS[digit]}), (1, {"badly": DIGITS[digit], "perfectly": 1.0})):
        task = one_digit(digit, scale)
        model = create({"name": "mlp", "hidden": [100], "activation": "sigmoid"}, [784], 2, seed=seed)
        for state, each in zip(goals, trained(model, task, tuple(goals.values()), 0.001, seed), strict=True):
            network = f"digit {digit}, pixels to {scale}, {state} trained"
            rows += courses(network, each, task, seed, ("oracle", "first order", "second order"))
    return rows, []


def jobs() -> list[Callable[[], tuple[list[Row], list[Row]]]]:
    """All that is measured, each for itself."""
    ten = [partial(ten_digit_network, network, seed) for network in NETWORKS for seed in range(SEEDS)]
    return ten + [partial(one_digit_networks, digit, seed) for digit in DIGITS for seed in range(SEEDS)]


@drawing_style()
def curves(rows: list[Row], network: str) -> Drawing:
    """Squared error and accuracy against the units removed, means over the seeds; broken: single pass."""
    figure = Figure(figsize=(10.0, 3.6))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 2)
    for axes, column, label in zip(
        panels, ("error", "train_accuracy"), ("squared error", "accuracy on the training images"), strict=True
    ):
        clean(axes)
        for place, method in enumerate(SWEPT):
            for once, dash in (("", "-"), (", single pass", "--")):
                by: dict[int, list[float]] = {}
                for row in rows:
                    if (row["network"], row["method"]) == (network, method + once):
                        by.setdefault(int(row["removed"]), []).append(float(row[column]))
                means = [sum(values) / len(values) for values in by.values()]
                label_of = method + once if by else None
                axes.plot(list(by), means, linestyle=dash, color=PALETTE[place], label=label_of)
        axes.set(xlabel="units removed", ylabel=label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7.5)
    return Drawing("curves", network, "Means over the seeds.", figure, {})


def drawings(rows: list[Row], swept: list[Row]) -> Iterator[tuple[str, Drawing]]:
    """By the name of its file each figure of the page."""
    for network in dict.fromkeys(row["network"] for row in swept):
        yield f"{network} curves", curves(rows, network)
        for method in SWEPT:
            lines: dict[int, list[float]] = {}
            for row in swept:
                if (row["network"], row["method"]) == (network, method):
                    lines.setdefault(int(row["removed_before"]), []).append(float(row["error"]))
            if lines:
                errors = np.array(list(lines.values()))
                yield (
                    f"{network} {method}",
                    gain_sweep_drawing(GAINS.numpy(), errors, list(lines), "squared error"),
                )


def shown(row: Row) -> bool:
    """Whether a removal has its line in the table: the first ones, and every tenth."""
    return row["removed"] <= (30 if row["network"] in NETWORKS else 10) or row["removed"] % 10 == 0


def written(name: str, rows: list[Row]) -> None:
    """Write a table."""
    with (FOLDER / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(name: str) -> list[Row]:
    """A table again."""
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Train, remove, measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", action="store_true", help="draw the figures again, from the tables")
    torch.set_num_threads(1)
    (FOLDER / "figures").mkdir(parents=True, exist_ok=True)
    if not parser.parse_args().figures:
        rows: list[Row] = []
        swept: list[Row] = []
        for job in jobs():
            found, lines = job()
            print(found[0], flush=True)
            rows, swept = rows + found, swept + lines
            written("results.csv", [row for row in rows if shown(row)])
            written("summary.csv", list(summary(rows)))
            written("sweeps.csv", swept)
    for name, drawing in drawings(read("results.csv"), read("sweeps.csv")):
        picture = io.BytesIO()
        drawing.figure.savefig(picture, dpi=90)
        path = FOLDER / "figures" / f"{name.replace(' ', '-')}.png"
        Image.open(picture).convert("RGB").quantize(48).save(path, optimize=True)


if __name__ == "__main__":
    main()
