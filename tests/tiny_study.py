"""Studies of a second, and what the tests look at in their folders."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from prunekit.study import Study

TRAINING = {"epochs": 2, "batch_size": 32, "lr": 0.01}


def settings(**changes: Any) -> dict[str, Any]:
    """A study of iris: two methods, three cells, two seeds."""
    values: dict[str, Any] = {
        "name": "tiny",
        "dataset": "iris",
        "model": {"name": "mlp", "hidden": [8]},
        "training": TRAINING,
        "seeds": 2,
        "methods": {"random": one_shot("random", 0.5, 0.8), "tickets": tickets()},
        "controls": {"random": "random"},
    }
    return values | changes


def one_shot(score: str, *sparsities: float) -> dict[str, Any]:
    return {
        "recipe": {"score": score, "schedule": {"name": "one_shot", "sparsity": 0.1}},
        "sweep": {"schedule.sparsity": list(sparsities)},
    }


def tickets(steps: int = 3, **training: Any) -> dict[str, Any]:
    return {
        "recipe": {
            "schedule": {"name": "geometric", "rate": 0.3, "steps": steps},
            "retrain": {"name": "rewind", "step": 2, "training": TRAINING | training},
        }
    }


def tiny(**changes: Any) -> Study:
    return Study.parse(settings(**changes), allow=["own_parts"])


def write_study(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(settings(**changes), sort_keys=False))
    return path


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, without the column that differs between runs."""
    with path.open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)
        ]


def tables(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    return table(folder / "results.csv"), table(folder / "layers.csv")


def stages(folder: Path) -> dict[str, int]:
    """When each stage was finished, in nanoseconds; an equal number means that it was not repeated."""
    return {
        str(path.parent.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.glob("*/*/seed-*/result.json"))
    }


def hidden(folder: Path) -> list[str]:
    """The temporary files anywhere in a folder; the lock is none."""
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]
