"""study.json: what was asked, for the report, and so that the study can be run again."""

from __future__ import annotations

import platform
from typing import Any

import torch

from prunekit.study.layout import FORMAT
from prunekit.study.series import Series
from prunekit.study.spec import Study
from prunekit.version import __version__


def describe(study: Study, task: str, command: str | None) -> dict[str, Any]:
    """The content of study.json.

    Args:
        study: the study.
        task: `classification` or `regression`.
        command: how a person repeats it.
    """
    return {
        "format": FORMAT,
        "name": study.name,
        "title": study.title or study.name,
        "question": study.question,
        "expected": study.expected,
        "dataset": study.dataset.to_dict(),
        "model": study.model.to_dict(),
        "training": study.training.to_dict(),
        "seeds": study.seeds,
        "splits": study.splits,
        "methods": {
            label: {
                "recipe": [cell.recipe.to_dict() for cell in study.cells if cell.label == label],
                "summary": method.describe()[0],
                "paper": method.describe()[1],
            }
            for label, method in study.methods.items()
        },
        "controls": study.controls.to_dict(),
        "study": study.to_dict(),
        "environment": {
            "prunekit": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "command": command or f"prunekit compare {study.name} --seeds {study.seeds}",
        "primary": "test_accuracy" if task == "classification" else "test_mse",
    }


def describe_series(series: Series, command: str | None) -> dict[str, Any]:
    """The content of series.json."""
    return {
        "format": FORMAT,
        "name": series.name,
        "title": series.title,
        "question": series.question,
        "expected": series.expected,
        "problems": list(series.studies),
        "command": command or f"prunekit compare {series.name}",
    }
