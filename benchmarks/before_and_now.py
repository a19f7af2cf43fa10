"""What is slow in pruning, now and at an earlier commit, in turn on one thread: nothing may become slower.

    python benchmarks/before_and_now.py --before a2d8f28 --json FILE [--rounds 9] [--only WORDS]

Each case runs in a process of its own for each of the two states, a round here, a round there; compared are
the CPU seconds of each round, and the median of the ratios is given. What has another name in another state
is tried under both.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from side_by_side import machine
from two_states import compare, serve

Work = Callable[[], float | None]


def images(count: int) -> tuple[Tensor, Tensor]:
    """MNIST's first training images if PRUNEKIT_DATA names a folder that holds it, else random numbers."""
    if os.environ.get("PRUNEKIT_DATA"):
        from prunekit.data import load

        split = load("mnist").train
        return split.inputs[:count], split.targets[:count]
    drawn = torch.Generator().manual_seed(1)
    inputs = torch.rand((count, 1, 28, 28), generator=drawn)
    return inputs, torch.randint(0, 10, (count,), generator=drawn)


def mlp(*sizes: int) -> nn.Module:
    """Neurons with a logistic sigmoid."""
    torch.manual_seed(0)
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(nn.Flatten(), *[each for pair in pairs for each in (nn.Linear(*pair), nn.Sigmoid())])


def built(name: str, shape: tuple[int, ...]) -> nn.Module:
    from prunekit.models import create

    return create(name, shape, 10, seed=0)


def coupling(name: str, folder: Path) -> Work:
    """What is coupled in a network, and half of it taken out; the proof does not count."""
    from prunekit.graph import prune_groups

    dense, inputs = built(name, (3, 32, 32)).eval(), torch.randn(2, 3, 32, 32)

    def work() -> float:
        model = copy.deepcopy(dense)
        began = time.process_time()
        result = prune_groups(model, inputs, 0.5)
        return time.process_time() - began - result.seconds[2]

    return work


def shrinking(folder: Path) -> Work:
    """A chain pruned by the norm of its filters and shrunk, with its plan and the proof."""
    from prunekit import prune
    from prunekit.methods import filter_norm
    from prunekit.recipe import Recipe

    dense, inputs = built("vgg_small", (3, 32, 32)).eval(), torch.randn(8, 3, 32, 32)
    recipe = Recipe.parse({**filter_norm(0.5).to_dict(), "retrain": "none"})

    def work() -> float:
        model = copy.deepcopy(dense)
        data = (inputs, torch.zeros(len(inputs), dtype=torch.long))
        began = time.process_time()
        prune(model, recipe, data).shrink(inputs)
        return time.process_time() - began

    return work


def oracle(model: nn.Module, count: int, error: str, folder: Path) -> Work:
    """The exact change of the error for every unit."""
    from prunekit.units import oracle_changes

    inputs, targets = images(count)
    chain = chain_of(model.eval(), inputs[:2])
    return lambda: None if oracle_changes(chain, inputs, targets, error) else 0.0


def chain_of(model: nn.Module, example: Tensor) -> Any:
    """A network as a chain of layers; later states capture it on an example."""
    try:
        from prunekit.graph import chain_of
    except ImportError:
        from prunekit.structure import chain_of
    try:
        return chain_of(model, example)
    except TypeError:
        return chain_of(model)


def lenet5() -> nn.Module:
    return built("lenet5", (1, 28, 28))


def exact_obs(count: int, folder: Path) -> Work:
    """LeNet-300-100 by exact OBS: Hessians, elimination of all weights, refit."""
    from prunekit import prune
    from prunekit.methods import exact_layer_obs

    dense, data = built("lenet_300_100", (1, 28, 28)), images(count)
    recipe = exact_layer_obs(0.9)
    recipe = type(recipe).parse({**recipe.to_dict(), "calibration": count})

    def work() -> float:
        model = copy.deepcopy(dense)
        began = time.process_time()
        prune(model, recipe, data)
        return time.process_time() - began

    return work


def masked_steps(folder: Path) -> Work:
    """An epoch of 300 steps under masks."""
    from prunekit import Masks, Training, train

    model, (inputs, targets) = built("lenet_300_100", (1, 28, 28)), images(6000)
    drawn = torch.Generator().manual_seed(0)
    masks = Masks(
        {
            name: torch.rand(weight.shape, generator=drawn) >= 0.9
            for name, weight in model.named_parameters()
            if weight.dim() >= 2
        }
    )
    masks.apply(model)
    training = Training(epochs=1, batch_size=20)
    return lambda: train(model, (inputs, targets), training, seed=0, masks=masks) and None


def cells(folder: Path, count: int = 100) -> Work:
    """A study of cells that do next to nothing, without its report: seconds per cell."""
    import logging

    import prunekit.report
    from prunekit.study import Study, run_study

    logging.disable()
    prunekit.report.write_report = lambda root, *_, **__: Path(root)  # type: ignore[assignment]
    study = Study.parse(
        {
            "name": "cells",
            "dataset": "iris",
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"epochs": 1},
            "seeds": 1,
            "methods": {
                "random": {
                    "recipe": {"score": "random", "schedule": {"name": "one_shot", "sparsity": 0.1}},
                    "sweep": {"schedule.sparsity": [round(0.05 + 0.009 * k, 4) for k in range(count)]},
                }
            },
            "controls": {"random": "random"},
        }
    )
    runs = itertools.count()

    def work() -> float:
        began = time.process_time()
        run_study(study, folder / f"cells-{next(runs)}", workers=1)
        return (time.process_time() - began) / count

    return work


CASES: dict[str, Callable[[Path], Work]] = {
    "coupling and surgery, resnet20": partial(coupling, "resnet20"),
    "coupling and surgery, vgg_small": partial(coupling, "vgg_small"),
    "plan, masks, surgery and proof, vgg_small": shrinking,
    "oracle, 784-100-10": lambda folder: oracle(mlp(784, 100, 10), 10_000, "squared_error", folder),
    "oracle, 784-50-50-10": lambda folder: oracle(mlp(784, 50, 50, 10), 10_000, "squared_error", folder),
    "oracle, lenet5": lambda folder: oracle(lenet5(), 200, "cross_entropy", folder),
    "exact OBS, lenet_300_100": partial(exact_obs, 10_000),
    "300 masked steps, lenet_300_100": masked_steps,
    "a cell of a study": cells,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in CASES if given.only in case]
    found = compare(Path(__file__), chosen, given.rounds, given.before)
    text = json.dumps({"machine": machine(), "rounds": given.rounds, **found}, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2] in CASES:  # one of the two sides, see `two_states`
        torch.set_num_threads(1)
        torch.manual_seed(0)
        place = Path(sys.argv[1])
        place.mkdir(parents=True, exist_ok=True)
        serve(CASES[sys.argv[2]](place))
    else:
        main()
