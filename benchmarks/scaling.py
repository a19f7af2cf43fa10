"""One and two processes at the same work: `python benchmarks/scaling.py --json FILE`.

The oracle (with its units and with its examples divided), Wanda, and exact layer-wise OBS, in one process on
one core, and in two on a core each, which exchange by gloo. The processes live throughout and take turns, so
that what else the machine does falls on both alike; figures are medians over the rounds. Processor time
hardly depends on other programs, that of the wall does: `load` is the number of programs that wanted a core.

Of the two the slower one counts. `gain` is the time of one process over that. What bounds it: `repeated`, the
processor time of both together beyond that of one, as a share of the latter, which is what both must do and
what they do to exchange; `exchange`, the share of collectives in a process's own processor time; `waiting`,
their share in its time by the wall, in which it also waits for the other one.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed, nn

from prunekit import prune
from prunekit.distributed import means_over_processes, processes, rank, shard
from prunekit.graph import chain_of
from prunekit.methods import recipe
from prunekit.units import oracle_changes
from side_by_side import arguments, finish

ROUNDS = 7
Figures = dict[str, float]


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them and seeded weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def examples(count: int, inputs: int, classes: int) -> tuple[Tensor, Tensor]:
    """Random inputs, which correlate, and classes."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    values = torch.randn(count, inputs, generator=generator) @ mixed
    return values, torch.randint(classes, (count,), generator=generator)


def oracle_by_units() -> Callable[[], object]:
    """LeNet-300-100 on 8,000 examples that both have; each judges half of the units."""
    model, (inputs, targets) = mlp(784, 300, 100, 10).eval(), examples(8000, 784, 10)
    chain = chain_of(model, inputs)
    return partial(oracle_changes, chain, inputs, targets, "cross_entropy", together=processes() > 1)


def oracle_by_examples() -> Callable[[], object]:
    """The same; each judges all units on half of the examples, and the means are taken together."""
    model, (inputs, targets) = mlp(784, 300, 100, 10).eval(), examples(8000, 784, 10)
    own = slice(rank(), None, processes())
    chain, inputs, targets = chain_of(model, inputs), inputs[own].clone(), targets[own].clone()

    def work() -> object:
        found = oracle_changes(chain, inputs, targets, "cross_entropy")
        return means_over_processes({name: each * len(inputs) for name, each in found.items()}, len(inputs))

    return work


def pruned(method: str, sizes: tuple[int, ...], count: int) -> Callable[[], object]:
    """A network pruned to half, by a sample that is divided."""
    model, data = mlp(*sizes), examples(count, sizes[0], sizes[-1])
    chosen = recipe(method, sparsity=0.5).model_copy(update={"calibration": count})

    def work() -> object:
        return prune(copy.deepcopy(model), chosen, shard(data))

    return work


TASKS: dict[str, Callable[[], Callable[[], object]]] = {
    "oracle, units divided": oracle_by_units,
    "oracle, examples divided": oracle_by_examples,
    "wanda": partial(pruned, "wanda", (1024, 1024, 1024, 10), 8192),
    "exact layer obs": partial(pruned, "exact_layer_obs", (256, 256, 256, 10), 2048),
}


class Clock:
    """The time that a process spends in collectives, by its processor and by the wall."""

    def __init__(self) -> None:
        self.processor = self.wall = 0.0
        for name in ("all_reduce", "broadcast", "reduce"):
            setattr(distributed, name, partial(self._timed, getattr(distributed, name)))

    def _timed(self, collective: Callable[..., Any], *args: Any, **more: Any) -> Any:
        began, on_wall = time.process_time(), time.perf_counter()
        done = collective(*args, **more)
        self.processor += time.process_time() - began
        self.wall += time.perf_counter() - on_wall
        return done


def work(connection: Connection, number: int, count: int, meeting: str) -> None:
    """A process that does what it is told: the name of a task in, its times out."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if count > 1:
        distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=count)
    tasks = {name: make() for name, make in TASKS.items()}
    clock = Clock()
    while (name := connection.recv()) is not None:
        clock.processor = clock.wall = 0.0
        began, on_wall = time.process_time(), time.perf_counter()
        tasks[name]()
        connection.send(
            {
                "processor": time.process_time() - began,
                "wall": time.perf_counter() - on_wall,
                "exchange_processor": clock.processor,
                "exchange_wall": clock.wall,
            }
        )


def rounds(count: int) -> dict[str, list[tuple[Figures, list[Figures]]]]:
    """By task, for each round the times of the one process and of both others."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[Figures, list[Figures]]]] = {name: [] for name in TASKS}
    with tempfile.TemporaryDirectory() as folder:
        ends: list[Connection] = []
        for number, size in ((0, 1), (0, 2), (1, 2)):
            here, there = context.Pipe()
            arguments = (there, number, size, f"file://{folder}/meeting")
            context.Process(target=work, args=arguments, daemon=True).start()
            ends.append(here)
        for turn in range(count + 1):
            for name in TASKS:
                ends[0].send(name)
                alone = ends[0].recv()
                for end in ends[1:]:
                    end.send(name)
                both = [end.recv() for end in ends[1:]]
                if turn:  # the first one warms up
                    found[name].append((alone, both))
        for end in ends:
            end.send(None)
    return found


def summary(times: list[tuple[Figures, list[Figures]]]) -> dict[str, Any]:
    """The medians over the rounds, and what bounds the gain."""

    def middle(figure: Callable[[Figures, list[Figures]], float]) -> float:
        return round(median(figure(*each) for each in times), 3)

    def slower(both: list[Figures], key: str) -> float:
        return max(each[key] for each in both)

    def share(both: list[Figures], key: str) -> float:
        return min(each[f"exchange_{key}"] / each[key] for each in both)

    return {
        "one_processor_s": middle(lambda one, two: one["processor"]),
        "two_processor_s": middle(lambda one, two: slower(two, "processor")),
        "one_wall_s": middle(lambda one, two: one["wall"]),
        "two_wall_s": middle(lambda one, two: slower(two, "wall")),
        "gain_processor": middle(lambda one, two: one["processor"] / slower(two, "processor")),
        "gain_wall": middle(lambda one, two: one["wall"] / slower(two, "wall")),
        "repeated": middle(lambda one, two: sum(each["processor"] for each in two) / one["processor"] - 1),
        "exchange": middle(lambda one, two: share(two, "processor")),
        "waiting": middle(lambda one, two: share(two, "wall")),
    }


def main() -> None:
    """Measure, and say what the machine had to do besides."""
    options = arguments("One and two processes at the same work.", ROUNDS)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed")
    before = os.getloadavg()[0]
    times = rounds(options.rounds)
    load = [round(each, 1) for each in (before, os.getloadavg()[0])]
    finish(options, {"load": load, "tasks": {name: summary(each) for name, each in times.items()}})


if __name__ == "__main__":
    main()
