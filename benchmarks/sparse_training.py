"""What sparsity that is learned in training costs: a step on LeNet-300-100 against a plain one, interleaved.

    python benchmarks/sparse_training.py --json FILE

Every way trains a copy of the same network for as many steps of the optimizer, SGD with momentum on batches
of 128; all that comes between the steps is counted. Bars, over the plain step: RigL, averaged over its
exchanges, at most 1.1x; gates at most 1.5x, which those of single weights miss: each step goes through memory
of the weights' size for the noise, the gates, the penalty, their gradients and the optimizer's step of them;
group lasso at most 1.15x.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch

from prunekit import Masks, Training, methods, prune, train
from prunekit.batches import TensorBatches
from prunekit.models import create
from prunekit.parts.regularize import GroupLasso
from side_by_side import arguments, finish, measure, ratio

IMAGES = 20_000
EXCHANGES, DISTANCE, REST = 6, 100, 0.25
STEPS = round(EXCHANGES * DISTANCE / (1 - REST))
SGD = {"optimizer": "sgd", "lr": 0.01, "batch_size": 128}


def ways(data: TensorBatches) -> dict[str, Callable[[], Any]]:
    dense = create("lenet_300_100", (1, 28, 28), 10, seed=0)
    plain = Training(iterations=STEPS, **SGD)
    lasso = plain.model_copy(update={"regularize": (GroupLasso(strength=1e-3),)})
    drawn = torch.Generator().manual_seed(0)
    masks = Masks(
        {
            name: torch.rand(weight.shape, generator=drawn) >= 0.98
            for name, weight in dense.named_parameters()
            if weight.dim() >= 2
        }
    )

    def dynamic(name: str) -> Callable[[], Any]:
        chosen = methods.recipe(
            name, sparsity=0.98, steps=EXCHANGES, training={"iterations": DISTANCE, **SGD}
        )
        return lambda: prune(copy.deepcopy(dense), chosen, data)

    def gated(**settings: str) -> Callable[[], Any]:
        gates = {"density": 0.3, **settings}
        chosen = Training.parse({"iterations": STEPS, "regularize": [gates], **SGD})
        return lambda: train(copy.deepcopy(dense), data, chosen)

    return {
        "plain": lambda: train(copy.deepcopy(dense), data, plain),
        "masked": lambda: train(copy.deepcopy(dense), data, plain, masks=masks),
        "gates of units": gated(name="l0", of="units"),
        "gates of weights": gated(name="l0", of="weights"),
        "vib": gated(name="vib"),
        "vib, noise of batches": gated(name="vib", noise="batch"),
        "set": dynamic("set"),
        "rigl": dynamic("rigl"),
        "group_lasso": lambda: train(copy.deepcopy(dense), data, lasso),
    }


def main() -> None:
    options = arguments(__doc__ or "", rounds=15)
    torch.set_num_threads(1)
    drawn = torch.Generator().manual_seed(1)
    inputs = torch.rand((IMAGES, 1, 28, 28), generator=drawn)
    targets = torch.randint(0, 10, (IMAGES,), generator=drawn)
    seconds = measure(ways(TensorBatches(inputs, targets)), options.rounds)
    finish(
        options,
        {
            "steps": STEPS,
            "exchanges": EXCHANGES,
            "median_cpu_seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
            "to_plain": {name: ratio(seconds, name, "plain") for name in seconds if name != "plain"},
        },
    )


if __name__ == "__main__":
    main()
