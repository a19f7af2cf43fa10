"""Loading a saved network of 100 MB, beside the state before files carried digests.

`python benchmarks/loading.py FOLDER CASE` is one of the two sides, see `two_states`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from two_states import compare, serve

CASES = ("a model of prunekit", "a model of the user's", "half of the weights removed")


def loading(rounds: int, before: str) -> dict[str, Any]:
    """Medians of the seconds of the processor for each kind of save, and their ratios."""
    return {"megabytes": 96, **compare(Path(__file__), CASES, rounds, before)}


def _serve(folder: Path, case: str) -> None:
    from prunekit import Architecture, Masks, load_pretrained, save_pretrained
    from prunekit.models import ModelSettings

    torch.set_num_threads(1)
    settings = ModelSettings.parse({"name": "mlp", "hidden": [5000, 4000]})
    architecture = Architecture(settings, (784,), 10)
    known, masks = case == CASES[0], Masks({})
    model = architecture.build()
    if case == CASES[2]:
        kept = torch.rand(4000, 5000, generator=torch.Generator().manual_seed(0)) < 0.5
        masks = Masks({_largest(model): kept})
    place = save_pretrained(
        model, folder / case.replace(" ", "-"), masks=masks, architecture=architecture if known else None
    )

    def load() -> float:
        fresh = None if known else architecture.build()
        began = time.process_time()
        load_pretrained(place, fresh)
        return time.process_time() - began

    serve(load)


def _largest(model: torch.nn.Module) -> str:
    return max(model.named_parameters(), key=lambda item: item[1].numel())[0]


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])
