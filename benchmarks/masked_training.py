"""What masks cost in training: LeNet-300-100, an epoch of 20,000 images, batches of 60 and 128, Adam and SGD.

    python benchmarks/masked_training.py --json FILE

Side by side in every round: prunekit's loop with masks and without, the same with torch.nn.utils.prune
(masks by reparametrisation), and a bare hand-written loop. Bars: masked at most 1.05x unmasked; prunekit's
loop at most 1.1x the bare one; masked not slower than torch.nn.utils.prune.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from prunekit import Masks, Training, train
from prunekit.batches import TensorBatches
from prunekit.models import create
from prunekit.training import make_optimizer
from side_by_side import arguments, finish, measure, ratio

IMAGES = 20_000
SPARSITY = 0.9


def random_masks(model: nn.Module) -> Masks:
    drawn = torch.Generator().manual_seed(0)
    names = [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]
    return Masks(
        {name: torch.rand(model.get_parameter(name).shape, generator=drawn) >= SPARSITY for name in names}
    )


def bare_loop(model: nn.Module, inputs: Tensor, targets: Tensor, training: Training) -> None:
    """What a person writes by hand."""
    optimizer = make_optimizer(model, training)
    model.train()
    order = torch.randperm(len(inputs))
    for start in range(0, len(inputs), training.batch_size):
        chosen = order[start : start + training.batch_size]
        loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def ways(training: Training, inputs: Tensor, targets: Tensor) -> dict[str, Callable[[], Any]]:
    dense = create("lenet_300_100", (1, 28, 28), 10, seed=0)
    masks = random_masks(dense)
    data = TensorBatches(inputs, targets)
    pruned = copy.deepcopy(dense)
    masks.apply(pruned)
    peer = copy.deepcopy(dense)
    for name, mask in masks.items():
        layer = peer.get_submodule(name.rpartition(".")[0])
        torch_prune.custom_from_mask(layer, "weight", mask)
    return {
        "prunekit": lambda: train(dense, data, training, seed=0),
        "prunekit, masked": lambda: train(pruned, data, training, seed=0, masks=masks),
        "bare loop": lambda: bare_loop(dense, inputs, targets, training),
        "torch.nn.utils.prune": lambda: train(peer, data, training, seed=0),
    }


def main() -> None:
    options = arguments(__doc__ or "", rounds=9)
    torch.set_num_threads(1)
    drawn = torch.Generator().manual_seed(1)
    inputs = torch.rand((IMAGES, 1, 28, 28), generator=drawn)
    targets = torch.randint(0, 10, (IMAGES,), generator=drawn)
    figures: dict[str, Any] = {"images": IMAGES, "sparsity": SPARSITY, "cases": []}
    for optimizer in ("adam", "sgd"):
        for batch_size in (60, 128):
            training = Training(epochs=1, batch_size=batch_size, optimizer=optimizer)
            seconds = measure(ways(training, inputs, targets), options.rounds)
            figures["cases"].append(
                {
                    "optimizer": optimizer,
                    "batch_size": batch_size,
                    "median_cpu_seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
                    "masked_to_unmasked": ratio(seconds, "prunekit, masked", "prunekit"),
                    "loop_to_bare_loop": ratio(seconds, "prunekit", "bare loop"),
                    "masked_to_torch_prune": ratio(seconds, "prunekit, masked", "torch.nn.utils.prune"),
                }
            )
    finish(options, figures)


if __name__ == "__main__":
    main()
