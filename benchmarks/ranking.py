"""Time to choose the lowest of many numbers, beside sorting them all, and to load MNIST where it is there.

`python benchmarks/ranking.py --json FILE`. In the suite only what is chosen is tested, as seconds are the
machine's.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prunekit.data import load
from prunekit.masks import lowest
from side_by_side import arguments, finish, measure, ratio

SIZE = 25_000_000
COUNT = 22_500_001


def sort(values: Tensor) -> Tensor:
    """The same choice as one writes it down."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.argsort(stable=True)[:COUNT]] = True
    return chosen


def main() -> None:
    options = arguments("Choosing the lowest of 25 million numbers.", rounds=5)
    torch.set_num_threads(1)
    figures = {}
    for kind, values in (("random", torch.rand(SIZE)), ("constant", torch.ones(SIZE))):
        ways = {"lowest": partial(lowest, values, COUNT), "sort": partial(sort, values)}
        seconds = measure(ways, options.rounds)
        figures[kind] = {"seconds": seconds, "lowest / sort": ratio(seconds, "lowest", "sort")}
    if folder := os.environ.get("PRUNEKIT_DATA"):
        ways = {"load": partial(load, "mnist", Path(folder), download=False)}
        figures["mnist"] = measure(ways, options.rounds)
    finish(options, figures)


if __name__ == "__main__":
    main()
