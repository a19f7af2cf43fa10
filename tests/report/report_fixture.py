"""Plausible synthetic study folders: numbers as a study of small networks would give them, no training."""

import csv
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.digests import write_json_with_digest
from prunekit.study_files import FORMAT

RESULTS = [
    *("study", "dataset", "model", "method", "cell", "seed", "step", "sparsity", "compression_ratio"),
    *("prunable", "kept", "parameters", "nonzeros", "macs", "macs_nonzero", "bytes", "train_loss"),
    *("validation_accuracy", "validation_loss", "validation_mse", "test_accuracy", "test_top5", "test_loss"),
    *("test_mse", "seconds"),
]
LAYERS = ["method", "cell", "seed", "step", "layer", "shape", "parameters", "kept", "sparsity"]
NET = {
    "features.0": "16x1x3x3",
    "features.3": "32x16x3x3",
    "features.6": "64x32x3x3",
    "head.0": "128x1024",
    "head.2": "10x128",
}


@dataclass
class Method:
    """knee: the compression at which it has lost ``drop`` of the dense accuracy."""

    knee: float
    ratios: tuple[float, ...] = (2, 4, 8, 12, 20, 50, 100)
    sweep: bool = False
    bonus: float = 0.002
    summary: str = "A made-up method for trying out the report."
    paper: str = "Nobody 2020, arXiv 0000.00000"
    tilt: float = 0.5
    recipe: dict[str, Any] = field(
        default_factory=lambda: {"score": {"kind": "magnitude"}, "schedule": {"steps": 7}}
    )


UNITS = {
    "key": "k",
    "error": "squared error",
    "gains": [0.0, 0.5, 1.0, 2.0],
    "sweeps": [{"layer": "fc1", "unit": 3, "removed": 0, "errors": [0.4, 0.3, 0.2, 0.6]}],
    "correlations": {"fc1": [[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]]},
}


MANY = {
    "magnitude, global": Method(
        28,
        summary="Removes the smallest weights over all layers at once.",
        paper="Han et al. 2015, arXiv 1506.02626",
        tilt=0.8,
    ),
    "magnitude, per layer": Method(
        16,
        summary="The same share of the smallest weights from every layer.",
        paper="Han et al. 2015, arXiv 1506.02626",
        tilt=0.0,
    ),
    "lottery ticket": Method(
        40,
        summary="Magnitude in rounds, back to the initial weights after each.",
        paper="Frankle & Carbin 2019, arXiv 1803.03635",
    ),
    "SNIP": Method(
        20,
        (2, 4, 8, 12, 20, 50),
        True,
        summary="Connection sensitivity at initialisation, one shot.",
        paper="Lee et al. 2019, arXiv 1810.02340",
        tilt=0.9,
    ),
    "optimal brain surgeon": Method(
        35,
        (2.1, 4.2, 9, 13, 22, 55),
        summary="Second order, with the update of the survivors.",
        paper="Hassibi & Stork 1993",
    ),
    "movement": Method(
        24,
        tilt=0.6,
        summary="Weights that move towards zero in training go.",
        paper="Sanh et al. 2020, arXiv 2005.07683",
    ),
    "filters by L1": Method(
        5,
        (1.5, 2.2, 4.4, 8.3),
        True,
        summary="Whole filters by the sum of their weights.",
        paper="Li et al. 2017, arXiv 1608.08710",
        tilt=0.3,
    ),
    "random": Method(5, summary="The control: which weights go is decided by chance.", paper="", tilt=0.0),
}


def make_study(
    folder: Path,
    methods: dict[str, Method],
    seeds: int = 3,
    dense: float = 0.985,
    regression: bool = False,
    longer: bool = True,
    title: str = "Which method holds out longest on digits?",
) -> Path:
    """Write results.csv, layers.csv and study.json; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: math.prod(int(n) for n in shape.split("x")) for name, shape in NET.items()}
    prunable = sum(sizes.values())
    dice = random.Random(f"{sorted(methods)} {seeds}")
    rows: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []

    def row(method: str, cell: str, seed: int, step: int, ratio: float, accuracy: float) -> None:
        kept = round(prunable / ratio)
        quality: dict[str, Any]
        if regression:
            mse = 10 * (1 - accuracy)
            quality = {
                "validation_mse": mse * 1.02,
                "test_mse": mse,
                "test_loss": mse,
                "validation_loss": mse,
            }
        else:
            error = max(1 - accuracy, 0.001)
            quality = {
                "validation_accuracy": min(1, accuracy + dice.gauss(0, 0.001)),
                "test_accuracy": accuracy,
                "test_top5": min(1, accuracy + 0.6 * error),
                "test_loss": 3.1 * error,
                "validation_loss": 3.2 * error,
                "train_loss": 1.5 * error,
            }
        full = {
            "study": "digits-quick",
            "dataset": "digits",
            "model": "small-cnn",
            "method": method,
            "cell": cell,
            "seed": seed,
            "step": step,
            "sparsity": f"{1 - kept / prunable:.6f}",
            "compression_ratio": f"{prunable / kept:.4f}",
            "prunable": prunable,
            "kept": kept,
            "parameters": prunable + 250,
            "nonzeros": kept + 250,
            "macs": 1_400_000,
            "macs_nonzero": round(1_400_000 / ratio**0.7),
            "bytes": 4 * prunable // 1,
            "seconds": f"{dice.uniform(4, 9):.2f}",
        }
        full |= {key: f"{value:.6f}" for key, value in quality.items()}
        rows.append({column: full.get(column, "") for column in RESULTS})

    for seed in range(seeds):
        row("dense", "d0", seed, 0, 1.0, min(0.999, dense + dice.gauss(0, 0.0015)))
        if longer:
            for step in (1, 2, 3):
                row(
                    "dense, trained as long",
                    "c0",
                    seed,
                    step,
                    1.0,
                    min(0.999, dense + 0.001 * step + dice.gauss(0, 0.001)),
                )
    for number, (label, method) in enumerate(methods.items()):
        for seed in range(seeds):
            for step, ratio in enumerate(method.ratios, start=1):
                cell = f"{number:02x}{step:02x}" if method.sweep else f"{number:02x}00"
                achieved = ratio * (1 + dice.gauss(0, 0.002))
                fall = (dense - 0.1) * (1 - math.exp(-((achieved / method.knee) ** 2) * 0.1))
                accuracy = dense + method.bonus - fall + dice.gauss(0, 0.0012 + 0.06 * fall * (1 - fall))
                step_number = 1 if method.sweep else step
                row(label, cell, seed, step_number, achieved, min(0.9995, max(0.08, accuracy)))
                for depth, (name, size) in enumerate(sizes.items()):
                    share = (1 - 1 / achieved) ** (1 + method.tilt * (len(sizes) - 1 - 1.6 * depth) / 3)
                    kept = max(1, round(size * (1 - min(share, 0.998))))
                    layers.append(
                        {
                            "method": label,
                            "cell": cell,
                            "seed": seed,
                            "step": step_number,
                            "layer": name,
                            "shape": NET[name],
                            "parameters": size,
                            "kept": kept,
                            "sparsity": f"{1 - kept / size:.6f}",
                        }
                    )
    write_csv(folder / "results.csv", RESULTS, rows)
    write_csv(folder / "layers.csv", LAYERS, layers)
    notes = {
        label: {
            "recipe": [method.recipe] * len(method.ratios) if method.sweep else method.recipe,
            "paper": method.paper,
            "summary": method.summary,
        }
        for label, method in methods.items()
    }
    if longer:
        notes["dense, trained as long"] = {
            "recipe": {"score": None},
            "paper": "",
            "summary": "The same retraining, nothing removed.",
        }
    study = {
        "format": FORMAT,
        "name": "digits-quick",
        "title": title,
        "question": "Do methods that look beyond a weight's size keep more accuracy at the same compression?",
        "expected": "Magnitude should be hard to beat up to 10x; second order should help beyond.",
        "dataset": {"name": "digits", "validation": 0.2},
        "model": {"name": "small-cnn", "width": 16},
        "training": {"epochs": 20, "optimizer": "sgd", "learning_rate": 0.1},
        "seeds": seeds,
        "methods": notes,
        "controls": {
            "random": "random" if "random" in methods else None,
            "dense_trained_as_long": "dense, trained as long" if longer else None,
        },
        "environment": {
            "prunekit": "0.1.0",
            "torch": "2.9.0",
            "python": "3.11.9",
            "platform": "Linux x86_64",
        },
        "command": f"prunekit compare digits-quick --seeds {seeds}",
        "primary": "test_mse" if regression else "test_accuracy",
    }
    write_json_with_digest(folder / "study.json", study)
    return folder


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
