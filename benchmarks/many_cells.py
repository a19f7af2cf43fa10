"""What a study of thousands of cells costs beyond their work: `python benchmarks/many_cells.py`.

A study of 1,000 recipes and 2 seeds of a network that is trained for a few steps, in one process: the time
that is spent outside of the cells. With two workers, and on a Ray cluster of this machine: 2,000 jobs that do
nothing, and how much the memory of this process grows in the second half of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import operator
import tempfile
import time
from pathlib import Path
from typing import Any

import prunekit.study.run as study_run
from prunekit.study import Executor, LocalPool, RayCluster, Study, run_study
from prunekit.study.jobs import Failure, Job, Watcher
from prunekit.study.stages import run_cell
from side_by_side import resident

RECIPES, SEEDS = 1_000, 2
TRAINING = {"iterations": 2, "batch_size": 32, "lr": 0.01}


def study(recipes: int) -> Study:
    """Recipes that remove other shares at random, without retraining."""
    return Study.parse(
        {
            **{"name": "many", "dataset": "iris", "model": {"name": "mlp", "hidden": [8]}},
            **{"training": TRAINING, "seeds": SEEDS},
            "methods": {
                "random": {
                    "recipe": {"score": "random", "schedule": {"name": "one_shot", "sparsity": 0.1}},
                    "sweep": {"schedule.sparsity": [0.9 * (k + 1) / recipes for k in range(recipes)]},
                }
            },
        }
    )


class Clock:
    """The cells of a study, and the time that they take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def run_cell(self, *arguments: Any) -> None:
        began = time.perf_counter()
        run_cell(*arguments)
        self.seconds += time.perf_counter() - began


def whole_study(recipes: int) -> dict[str, float]:
    """Seconds of a study in this process, and outside of its cells; the report is not made."""
    clock = Clock()
    study_run.run_cell = clock.run_cell  # type: ignore[assignment]
    study_run._report = lambda layout: layout.root  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_study(study(recipes), Path(folder) / "s", workers=1)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        run_study(study(recipes), Path(folder) / "s", workers=1)
        again = time.perf_counter() - began
    cells = recipes * SEEDS
    return {
        "cells": cells,
        "seconds": seconds,
        "milliseconds a cell, in all": 1e3 * seconds / cells,
        "milliseconds a cell, beyond its work": 1e3 * (seconds - clock.seconds) / cells,
        "milliseconds a cell, when all are finished": 1e3 * again / cells,
    }


NOTHING = operator.not_
"""A job without work, which a worker can import."""


class Memory(Watcher):
    """The memory of this process after each job."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []

    def started(self, job: Job) -> None: ...

    def progressed(self, job: Job, fraction: float) -> None: ...

    def lost(self, job: Job, failure: Failure) -> None: ...

    def finished(self, job: Job, seconds: float, failure: Failure | None) -> None:
        assert failure is None
        self.megabytes.append(resident("VmRSS") / (1 << 20))


def empty_jobs(executor: Executor, count: int) -> dict[str, float]:
    """Milliseconds of the wall for each job that does nothing; the processes are there before."""
    with executor.connected():
        executor.run([Job(f"first {k}", NOTHING, ()) for k in range(4)], Memory(), None)
        memory = Memory()
        began = time.perf_counter()
        executor.run([Job(f"job {k}", NOTHING, ()) for k in range(count)], memory, None)
        seconds = time.perf_counter() - began
    half = memory.megabytes[count // 2]
    return {
        "jobs": count,
        "milliseconds a job": 1e3 * seconds / count,
        "megabytes at the half": half,
        "megabytes more at the end": memory.megabytes[-1] - half,
    }


def main() -> None:
    """Run all three, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--recipes", type=int, default=RECIPES)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    count = given.recipes * SEEDS
    found = {
        "a study in this process": whole_study(given.recipes),
        "two workers": empty_jobs(LocalPool(2), count),
        "Ray": empty_jobs(RayCluster(), count),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
