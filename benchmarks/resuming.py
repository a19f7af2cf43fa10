"""Resuming a finished study of 1,000 cells, beside the state before files carried digests.

`python benchmarks/resuming.py FOLDER CASE` is one of the two sides, see `two_states`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from two_states import compare, serve

CASES = ("without its report", "with its report")
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


def resuming(rounds: int, before: str) -> dict[str, Any]:
    """Medians of the seconds of the processor, with and without the report, and their ratios."""
    return {"cells": SEEDS * RECIPES, **compare(Path(__file__), CASES, rounds, before)}


def _serve(folder: Path, report: bool) -> None:
    import prunekit.study.run as run
    from prunekit.study import Study, run_study

    logging.disable()
    if not report:
        run._report = lambda layout: layout.root

    def resume() -> None:
        run_study(Study.parse(STUDY), folder, workers=1)

    serve(resume)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2] == CASES[1])
