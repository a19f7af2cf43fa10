"""The walk of a call through the package: which files it passes through, and how often it comes back to one.

    python benchmarks/walks.py [--stations] [--json FILE]

Watched are the functions of the package that are entered (imports do not count), in order, for three calls:
`prune(model, magnitude(0.5))`; a score of units by data up to the shrunk network; a study up to its report.

    files        that a function is entered in
    come back    of them those that the walk leaves and comes back to, for a function that it has not seen
    unwrapped    how often the network is taken out of its wrappers

Bars: 15 files, 5 come back to and once for magnitude; 35 files for units; 60 for a study.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import prunekit
from prunekit import methods, prune
from prunekit.study import Study, run_study

PACKAGE = Path(prunekit.__file__).parent
BARS = {"magnitude": 15, "units": 35, "study": 60}
STUDY = {
    "name": "walk",
    "dataset": "iris",
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1},
    "seeds": 1,
    "methods": {
        name: {"recipe": {"score": name, "schedule": {"name": "one_shot", "sparsity": 0.5}}}
        for name in ("magnitude", "random")
    },
    "controls": {"random": "random"},
}


def walk(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """(file, function) of each function of the package that a call enters, in order."""
    entered: list[tuple[str, str]] = []

    def hear(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        ours = path.suffix == ".py" and PACKAGE in path.parents
        if event == "call" and ours and not code.co_name.startswith("<"):
            entered.append((str(path.relative_to(PACKAGE)), code.co_qualname))

    sys.setprofile(hear)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def stations(entered: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(file, functions) of each stay in a file, of the functions that are entered for the first time."""
    stays: list[tuple[str, list[str]]] = []
    for file, function in dict.fromkeys(entered):
        if not stays or stays[-1][0] != file:
            stays.append((file, []))
        stays[-1][1].append(function)
    return stays


def network(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def magnitude() -> list[tuple[str, str]]:
    model, recipe = network(10, 16, 3), methods.magnitude(0.5)
    return walk(lambda: prune(model, recipe))


def units() -> list[tuple[str, str]]:
    model, recipe = network(10, 16, 16, 3), methods.taylor_units(0.5, steps=1)
    inputs, targets = torch.randn(64, 10), torch.randint(3, (64,))
    return walk(lambda: prune(model, recipe, (inputs, targets)).shrink(inputs[:8]))


def study() -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        return walk(lambda: run_study(Study.parse(STUDY), Path(folder) / "run", workers=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stations", action="store_true", help="list every stay in a file, too")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    figures = {}
    for name, made in (("magnitude", magnitude), ("units", units), ("study", study)):
        entered = made()
        stays = stations(entered)
        times = Counter(file for file, _ in stays)
        figures[name] = {
            "files": len(times),
            "bar": BARS[name],
            "come back": sum(count > 1 for count in times.values()),
            "stays": len(stays),
            "unwrapped": sum(function == "unwrap" for _, function in entered),
        }
        if given.stations:
            print("\n".join(f"{file:40} {', '.join(functions)}" for file, functions in stays), end="\n\n")
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
