"""The oracle against the naive loop: what it costs to know the true price of every unit.

    python benchmarks/oracle.py --json FILE

One thread; 784-100-10, 784-50-50-10 (logistic sigmoid, squared error), 784-100-10 with cross-entropy, and
LeNet-5 with cross-entropy. The images are MNIST's if PRUNEKIT_DATA names the folder that holds it, else
random numbers of the same shape. In every round, side by side: the naive loop (a unit's outgoing weights to
zero, the whole network run under no_grad, in the batches that were fastest for it), `oracle_changes`, and the
exact second derivatives. Bars: ranking of 784-100-10 at least 30x faster than the naive loop (aim 60x), its
whole re-ranked elimination likewise at least 30x, convolutional networks faster.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.graph import Chain, chain_of
from prunekit.losses import squared_error
from prunekit.models import create
from prunekit.units import eliminate, gain_derivatives, oracle_changes
from side_by_side import arguments, finish, measure, ratio

EXAMPLES = 10_000
LENET_EXAMPLES = 200  # the naive loop would take a quarter of an hour a round on 10,000
Error = Callable[[Tensor, Tensor], Tensor]

BOUNDS = {
    "784-100-10": "half is the one forward pass (a product of matrices); of the rest, most are the logistic "
    "functions of the outputs, one per unit, example and output, which no identity avoids",
    "784-100-10, cross-entropy": "half is the one forward pass; of the rest, most are powers of two, one per "
    "unit, example and output; logarithms are taken of products of many examples",
    "784-50-50-10": "the logistic functions of the second hidden layer for each unit of the first, 50 per "
    "unit and example, and the small product of matrices behind them",
    "lenet5": "the units of conv1: for each, conv2's pooled maps go through fc1, 0.8 of the network's 4.6 "
    "million multiplications (products of matrices), and the maximum pooling before it",
}


def images(count: int) -> tuple[Tensor, Tensor, str]:
    if os.environ.get("PRUNEKIT_DATA"):
        from prunekit.data import load

        split = load("mnist").train
        return split.inputs[:count], split.targets[:count], "MNIST, the first training images"
    drawn = torch.Generator().manual_seed(1)
    inputs = torch.rand((count, 1, 28, 28), generator=drawn)
    return inputs, torch.randint(0, 10, (count,), generator=drawn), "random numbers in [0, 1)"


def mlp(sizes: list[int], *, squashed: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for number in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[number], sizes[number + 1]), nn.Sigmoid()]
    return nn.Sequential(*layers if squashed else layers[:-1])


class Naive:
    """The plain loop, as a person would write it, in the batch size that suits it best."""

    def __init__(self, model: nn.Module, chain: Chain, inputs: Tensor, targets: Tensor, error: Error):
        self.model, self.chain, self.error = model, chain, error
        self.inputs, self.targets = inputs, targets
        self.left = [(group, unit) for group in chain.groups for unit in range(group.units)]
        self.batch = min((500, 1000, 2500, 10_000), key=self._time)

    def _time(self, batch: int) -> float:
        self.batch = batch
        self.run()
        began = time.process_time()
        self.run()
        return time.process_time() - began

    @torch.no_grad()
    def run(self) -> float:
        total = 0.0
        for start in range(0, len(self.inputs), self.batch):
            some = slice(start, start + self.batch)
            total += float(self.error(self.model(self.inputs[some]), self.targets[some])) * len(
                self.inputs[some]
            )
        return total / len(self.inputs)

    @torch.no_grad()
    def without(self, group: Any, unit: int) -> float:
        weight = self.model.get_parameter(f"{group.consumer}.weight")
        columns = slice(unit * group.repeat, (unit + 1) * group.repeat)
        saved = weight[:, columns].clone()
        weight[:, columns] = 0
        error = self.run()
        weight[:, columns] = saved
        return error

    def changes(self) -> list[float]:
        now = self.run()
        return [self.without(group, unit) - now for group, unit in self.left]


def agreement(naive: list[float], found: dict[str, Tensor]) -> float:
    """The greatest difference as a fraction of the greatest change; float32 rounding of the naive loop."""
    truth, ours = torch.tensor(naive, dtype=torch.float64), torch.cat(list(found.values()))
    return float((truth - ours).abs().max() / truth.abs().max())


def ranking(name: str, model: nn.Module, error: Error, count: int, rounds: int) -> dict[str, Any]:
    inputs, targets, source = images(count)
    model = model.eval()
    chain = chain_of(model, inputs)
    naive = Naive(model, chain, inputs, targets, error)
    kept: dict[str, Any] = {}

    def run(way: str, function: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            kept[way] = function()

        return call

    seconds = measure(
        {
            "naive": run("naive", naive.changes),
            "oracle": run("oracle", lambda: oracle_changes(chain, inputs, targets, error)),
            "second order": run("second", lambda: gain_derivatives(chain, inputs, targets, error)),
            "first order": run(
                "first", lambda: gain_derivatives(chain, inputs, targets, error, second=False)
            ),
            "one forward pass": run("forward", naive.run),
        },
        rounds,
    )
    return {
        "network": name,
        "examples": count,
        "data": source,
        "units": len(naive.left),
        "naive_batch": naive.batch,
        "median_cpu_seconds": {way: statistics.median(all_) for way, all_ in seconds.items()},
        "naive_to_oracle": ratio(seconds, "naive", "oracle"),
        "oracle_to_second_order": ratio(seconds, "oracle", "second order"),
        "oracle_to_forward_pass": ratio(seconds, "oracle", "one forward pass"),
        "greatest_difference": agreement(kept["naive"], kept["oracle"]),
        "bound_by": BOUNDS[name],
    }


def elimination(name: str, model: nn.Module, error: Error, rounds: int) -> dict[str, Any]:
    """All units one by one; the naive loop runs one network per unit left at each step."""
    inputs, targets, source = images(EXAMPLES)
    chain = chain_of(model.eval(), inputs)
    naive = Naive(model, chain, inputs, targets, error)
    group, units = chain.groups[0], len(naive.left)
    runs = sum(range(1, units + 1)) + units  # each step also knows the error now
    seconds = measure(
        {
            "naive, one run": lambda: [naive.without(group, unit) for unit in range(10)],
            "oracle": lambda: eliminate(chain, inputs, targets, error),
        },
        rounds,
    )
    seconds["naive"] = [ten / 10 * runs for ten in seconds["naive, one run"]]
    return {
        "network": name,
        "examples": EXAMPLES,
        "data": source,
        "removals": units,
        "naive_runs": runs,
        "naive_is": "estimated: 10 runs were timed in each round, multiplied by the number of runs; all of "
        "them would take minutes",
        "median_cpu_seconds": {way: statistics.median(seconds[way]) for way in ("naive", "oracle")},
        "naive_to_oracle": ratio(seconds, "naive", "oracle"),
    }


def main() -> None:
    options = arguments(__doc__ or "", rounds=5)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    one = mlp([784, 100, 10], squashed=True)
    two = mlp([784, 50, 50, 10], squashed=True)
    plain = mlp([784, 100, 10], squashed=False)
    lenet = create("lenet5", (1, 28, 28), 10, seed=0)
    cases: list[tuple[str, nn.Module, Error, int]] = [
        ("784-100-10", one, squared_error, EXAMPLES),
        ("784-100-10, cross-entropy", plain, F.cross_entropy, EXAMPLES),
        ("784-50-50-10", two, squared_error, EXAMPLES),
        ("lenet5", lenet, F.cross_entropy, LENET_EXAMPLES),
    ]
    all_rounds = [options.rounds] * 3 + [min(3, options.rounds)]
    finish(
        options,
        {
            "ranking": [ranking(*case, rounds) for case, rounds in zip(cases, all_rounds, strict=True)],
            "elimination": [
                elimination("784-100-10", one, squared_error, options.rounds),
                elimination("784-50-50-10", two, squared_error, options.rounds),
            ],
            "lenet5_examples": f"{LENET_EXAMPLES}, at most 3 rounds: the naive loop runs 570 networks",
        },
    )


if __name__ == "__main__":
    main()
