"""What shrinking brings: parameters and bytes as counted by hand, and the time of a forward pass.

    python benchmarks/shrinking.py --json FILE

784-1000-1000-10 with 70 % of its units gone, LeNet-5 and VGG-small with half of theirs (the same fraction
of every layer, by L1 norm of the incoming weights). Per network: dense, masked (the units are off, but there)
and shrunk. Parameters by hand come from the widths alone, without the library's counting. One thread,
untrained networks: neither size nor time asks for the values.
"""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.methods import filter_norm
from prunekit.models import create
from prunekit.pruning import prune
from prunekit.recipe import Recipe
from prunekit.saving import save_pretrained
from side_by_side import arguments, finish, measure, ratio


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 1000),
        nn.ReLU(),
        nn.Linear(1000, 1000),
        nn.ReLU(),
        nn.Linear(1000, 10),
    )


def by_hand(model: nn.Module, sparsity: float) -> int:
    """The parameters that are left, from the widths of the dense network alone.

    A layer of k x k filters reads what is left of the layer before; one behind a flattening reads so many
    positions of each filter. The last layer keeps its outputs. Batch norm has two numbers per channel.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    total, before, left = 0, 0, 0
    for place, layer in enumerate(layers):
        fan_in = layer.weight.shape[1]
        outputs = layer.weight.shape[0]
        stay = outputs if place == len(layers) - 1 else outputs - round(sparsity * outputs)
        read = fan_in if place == 0 else left * (fan_in // before)
        total += stay * read * math.prod(layer.weight.shape[2:]) + (stay if layer.bias is not None else 0)
        before, left = outputs, stay
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            total += 2 * (module.num_features - round(sparsity * module.num_features))
    return total


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def saved_bytes(pruned: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(pruned, Path(folder) / "model")
        return sum(path.stat().st_size for path in (Path(folder) / "model").iterdir())


def case(
    name: str, dense: nn.Module, inputs: torch.Tensor, sparsity: float, batch: int, rounds: int
) -> dict[str, Any]:
    dense = dense.eval()
    recipe = Recipe.parse({**filter_norm(sparsity).to_dict(), "retrain": "none"})
    masked = prune(copy.deepcopy(dense), recipe)
    shrunk = prune(copy.deepcopy(dense), recipe)
    shrunk.shrink(inputs[:8])
    some = inputs[:batch]
    with torch.inference_mode():
        difference = float((masked.model(some) - shrunk.model(some)).abs().max())
        seconds = measure(
            {
                "dense": lambda: dense(some),
                "masked": lambda: masked.model(some),
                "shrunk": lambda: shrunk.model(some),
            },
            rounds,
        )
    ways = {"dense": dense, "masked": masked.model, "shrunk": shrunk.model}
    return {
        "network": name,
        "units_removed": sparsity,
        "batch": batch,
        "parameters": {way: parameters(model) for way, model in ways.items()},
        "parameters_by_hand": {"dense": by_hand(dense, 0.0), "shrunk": by_hand(dense, sparsity)},
        "file_bytes": {
            "dense": saved_bytes(dense),
            "masked": saved_bytes(masked),
            "shrunk": saved_bytes(shrunk),
        },
        "weights_bytes_by_hand": {
            "dense": 4 * by_hand(dense, 0.0),
            "shrunk": 4 * by_hand(dense, sparsity),
        },
        "greatest_difference_masked_to_shrunk": difference,
        "median_cpu_seconds": {way: sorted(each)[len(each) // 2] for way, each in seconds.items()},
        "dense_to_shrunk": ratio(seconds, "dense", "shrunk"),
        "dense_to_masked": ratio(seconds, "dense", "masked"),
    }


def main() -> None:
    options = arguments(__doc__ or "", rounds=30)
    torch.set_num_threads(1)
    drawn = torch.Generator().manual_seed(1)
    digits = torch.rand(256, 1, 28, 28, generator=drawn)
    pictures = torch.rand(16, 3, 32, 32, generator=drawn)
    lenet = create("lenet5", (1, 28, 28), 10, seed=0)
    vgg = create("vgg_small", (3, 32, 32), 10, seed=0)
    finish(
        options,
        {
            "networks": [
                case("784-1000-1000-10", mlp(), digits, 0.7, 256, options.rounds),
                case("784-1000-1000-10", mlp(), digits, 0.7, 1, options.rounds),
                case("lenet5", lenet, digits, 0.5, 64, options.rounds),
                case("vgg_small", vgg, pictures, 0.5, 8, options.rounds),
            ]
        },
    )


if __name__ == "__main__":
    main()
