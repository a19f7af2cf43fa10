"""Resuming a finished study of 1,000 cells, beside the state before files carried digests.

`python benchmarks/resuming.py FOLDER` is one of the two sides: it runs the study in the folder each time that
a line comes in, and answers with the seconds of the processor that this took.
"""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from side_by_side import ratio

HERE = Path(__file__).resolve().parent.parent
BEFORE = "afc3510"
"""The commit before files carried digests."""

SEEDS, RECIPES = 4, 250
STUDY = {
    "name": "thousand",
    "dataset": "iris",
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1},
    "seeds": SEEDS,
    "methods": {
        "random": {
            "recipe": {"score": "random", "schedule": {"name": "one_shot", "sparsity": 0.1}},
            "sweep": {"schedule.sparsity": [round(0.05 + 0.003 * k, 3) for k in range(RECIPES)]},
        }
    },
    "controls": {"random": "random"},
}


def resuming(rounds: int) -> dict[str, Any]:
    """Medians of the seconds of the processor, with and without the report, and their ratios."""
    figures: dict[str, Any] = {"cells": SEEDS * RECIPES, "before": BEFORE}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        source = stack.enter_context(_tree(BEFORE, Path(place) / "tree"))
        for report in (False, True):
            sides = {
                "now": stack.enter_context(_side(HERE / "src", Path(place) / "now", report)),
                "before": stack.enter_context(_side(source, Path(place) / "before", report)),
            }
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(rounds + 1):
                for name in sorted(sides, reverse=bool(number % 2)):
                    took = _once(sides[name])
                    if number:  # the first makes what the others resume
                        seconds[name].append(took)
            figures["with its report" if report else "without its report"] = {
                "median_cpu_seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
                "now_to_before": ratio(seconds, "now", "before"),
            }
    return figures


@contextmanager
def _tree(commit: str, folder: Path) -> Iterator[Path]:
    """The sources of a commit, in a folder of their own."""
    subprocess.run(
        ["git", "worktree", "add", "--detach", folder, commit], cwd=HERE, check=True, capture_output=True
    )
    try:
        yield folder / "src"
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=HERE, check=True)


@contextmanager
def _side(source: Path, folder: Path, report: bool) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder), *(["--report"] if report else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    try:
        yield process
    finally:
        process.communicate()


def _once(side: subprocess.Popen[str]) -> float:
    assert side.stdin is not None
    assert side.stdout is not None
    print("once more", file=side.stdin, flush=True)
    return float(side.stdout.readline())


def _serve(folder: Path, report: bool) -> None:
    import prunekit.study.run as run
    from prunekit.study import Study, run_study

    logging.disable()
    if not report:
        run._report = lambda layout: layout.results
    for _ in sys.stdin:
        began = time.process_time()
        run_study(Study.parse(STUDY), folder, workers=1)
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), "--report" in sys.argv)
