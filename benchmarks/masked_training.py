"""What masks cost in training: an epoch of LeNet-300-100 and LeNet-5, batches of 60 and 128, Adam and SGD.

    python benchmarks/masked_training.py --json FILE

Side by side in every round: prunekit's loop with masks and without, the same with torch.nn.utils.prune
(masks by reparametrisation), and a bare hand-written loop, without masks and attached, where gradients are
masked as well. Bars: masked at most 1.05x unmasked; prunekit's loop at most 1.1x the bare one; masked not
slower than torch.nn.utils.prune.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from prunekit import Masks, Training, train
from prunekit.batches import TensorBatches
from prunekit.masked_optimizer import MaskedOptimizer
from prunekit.models import create
from prunekit.training import make_optimizer
from side_by_side import arguments, finish, measure, ratio

IMAGES = {"lenet_300_100": 20_000, "lenet5": 3_000}
SPARSITY = 0.9


def random_masks(model: nn.Module) -> Masks:
    drawn = torch.Generator().manual_seed(0)
    names = [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]
    return Masks(
        {name: torch.rand(model.get_parameter(name).shape, generator=drawn) >= SPARSITY for name in names}
    )


def bare_loop(
    model: nn.Module, inputs: Tensor, targets: Tensor, training: Training, masks: Masks | None = None
) -> None:
    """What a person writes by hand; with masks, as an attached session holds them, gradients included."""
    optimizer = make_optimizer(model, training)
    if masks is not None:
        MaskedOptimizer(model, optimizer, masks)
    model.train()
    order = torch.randperm(len(inputs))
    for start in range(0, len(inputs), training.batch_size):
        chosen = order[start : start + training.batch_size]
        loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def ways(network: str, training: Training, inputs: Tensor, targets: Tensor) -> dict[str, Callable[[], Any]]:
    dense = create(network, (1, 28, 28), 10, seed=0)
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
        "bare loop, masked": lambda: bare_loop(pruned, inputs, targets, training, masks),
        "torch.nn.utils.prune": lambda: train(peer, data, training, seed=0),
    }


def main() -> None:
    options = arguments(__doc__ or "", rounds=9)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"images": IMAGES, "sparsity": SPARSITY, "cases": []}
    for network, optimizer, batch_size in product(IMAGES, ("adam", "sgd"), (60, 128)):
        drawn = torch.Generator().manual_seed(1)
        inputs = torch.rand((IMAGES[network], 1, 28, 28), generator=drawn)
        targets = torch.randint(0, 10, (IMAGES[network],), generator=drawn)
        training = Training(epochs=1, batch_size=batch_size, optimizer=optimizer)
        seconds = measure(ways(network, training, inputs, targets), options.rounds)
        figures["cases"].append(
            {
                "network": network,
                "optimizer": optimizer,
                "batch_size": batch_size,
                "median_cpu_seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
                "masked_to_unmasked": ratio(seconds, "prunekit, masked", "prunekit"),
                "attached_to_bare_loop": ratio(seconds, "bare loop, masked", "bare loop"),
                "loop_to_bare_loop": ratio(seconds, "prunekit", "bare loop"),
                "masked_to_torch_prune": ratio(seconds, "prunekit, masked", "torch.nn.utils.prune"),
            }
        )
    finish(options, figures)


if __name__ == "__main__":
    main()
