"""Layers and networks without their zeros beside dense ones, on one thread.

    python benchmarks/sparse_runtime.py --json FILE

A linear layer of 4096 x 4096 at 90 and 95 % zeros, for one vector and for 64: `SparseLinear` beside the dense
layer, PyTorch's other order of the product, and SciPy's compressed rows. Convolutions at 90 %. LeNet-300-100
with 8 % of its weights on MNIST: dense, with the layers that `sparsify_for_cpu` chooses, and the smallest
dense network that errs on at most 0.2 % of the images more (L1 of units, four rounds with as much retraining;
the largest that was tried, if none does). The bar: 5 times at 90 % and one vector. Medians of rounds in
turns; the quartiles of the rounds' ratios say how far they agree. The networks need the MNIST files
(PRUNEKIT_DATA, or a download).
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit import prune
from prunekit.data import load
from prunekit.measure import evaluate
from prunekit.methods import iterative_magnitude, structured_mlp
from prunekit.models import create
from prunekit.runtime import SparseConv2d, SparseLinear, sparsify_for_cpu
from prunekit.training import Training, train
from side_by_side import arguments, finish, measure

WORK = 0.02  # CPU seconds of a way in a round
BATCHES = 1, 64
CONVOLUTIONS = ((512, 512, 3, 4), (1024, 256, 1, 14), (256, 256, 3, 14), (64, 64, 3, 32), (20, 50, 5, 12))
KEPT, EPOCHS, STEPS = 0.08, 3, 4
SMALLER = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
AS_GOOD = 0.002  # of the test images; one and a half standard errors


def compared(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Median microseconds of each way, and the dense ones over the others', with their quartiles."""
    once = {name: statistics.median(each) for name, each in measure(ways, 3).items()}
    passes = {name: max(1, round(WORK / max(once[name], 1e-6))) for name in ways}
    repeated = {name: repeat(run, passes[name]) for name, run in ways.items()}
    seconds = {
        name: [each / passes[name] for each in taken] for name, taken in measure(repeated, rounds).items()
    }
    ratios = {
        name: [dense / each for dense, each in zip(seconds["dense"], seconds[name], strict=True)]
        for name in ways
        if name != "dense"
    }
    return {
        "median_microseconds": {
            name: round(1e6 * statistics.median(each), 2) for name, each in seconds.items()
        },
        "times_faster_than_dense": {
            name: dict(
                zip(
                    ("lower", "median", "upper"),
                    (round(each, 3) for each in statistics.quantiles(values)),
                    strict=True,
                )
            )
            for name, values in ratios.items()
        },
    }


def repeat(run: Callable[[], Any], passes: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(passes):
            run()

    return repeated


def with_zeros(layer: nn.Module, sparsity: float) -> Any:
    layer.requires_grad_(False)
    layer.weight.mul_(torch.rand(layer.weight.shape) >= sparsity)
    return layer


def linear(sparsity: float, batch: int, rounds: int) -> dict[str, Any]:
    dense = with_zeros(nn.Linear(4096, 4096), sparsity)
    sparse = SparseLinear(dense.weight, dense.bias)
    rows = sparse._rows()
    others = scipy.sparse.csr_matrix(dense.weight.numpy())
    bias, x = dense.bias, torch.randn(batch, 4096)
    ways = {
        "dense": lambda: dense(x),
        "SparseLinear": lambda: sparse(x),
        "inputs times transposed rows": lambda: F.linear(x, rows) + bias,
        "SciPy": lambda: (others @ x.numpy().T).T + bias.numpy(),
    }
    return told({"layer": "4096 x 4096", "sparsity": sparsity, "batch": batch, **compared(ways, rounds)})


def convolution(channels: int, out: int, size: int, side: int, batch: int, rounds: int) -> dict[str, Any]:
    dense = with_zeros(nn.Conv2d(channels, out, size, padding=size // 2), 0.9)
    sparse, x = SparseConv2d(dense), torch.randn(batch, channels, side, side)
    ways = {"dense": lambda: dense(x), "SparseConv2d": lambda: sparse(x)}
    layer = f"{channels} to {out} channels, {size} x {size}, on {side} x {side}"
    return told({"layer": layer, "sparsity": 0.9, "batch": batch, **compared(ways, rounds)})


def lenet(rounds: int) -> list[dict[str, Any]]:
    data = load("mnist")
    x, y = data.test.inputs, data.test.targets

    def error(model: nn.Module) -> float:
        return 1 - float(evaluate(model, x, y, task="classification").accuracy or 0)

    dense = create("lenet_300_100", data.input_shape, data.outputs, seed=0)
    training = {"decay": "cosine"}
    train(dense, data, Training(epochs=2 * EPOCHS, **training), seed=0)
    recipe = iterative_magnitude(1 - KEPT, steps=STEPS, epochs=EPOCHS, training=training)
    pruned = prune(copy.deepcopy(dense), recipe, data)
    wanted = error(pruned.model)
    for share in SMALLER:
        recipe = structured_mlp(share, rounds=STEPS, epochs=STEPS * EPOCHS, training=training)
        smaller = prune(copy.deepcopy(dense), recipe, data).shrink(x[:8]).model
        print(share, error(smaller), wanted, flush=True)
        if error(smaller) <= wanted + AS_GOOD:
            break
    found = []
    for batch in BATCHES:
        chosen = sparsify_for_cpu(copy.deepcopy(pruned.model), x[:batch])
        networks = {
            "dense": dense,
            "sparse": chosen.model,
            "smaller": smaller,
        }
        networks = {name: each.eval() for name, each in networks.items()}
        ways = {name: run_on(each, x[:batch]) for name, each in networks.items()}
        figures = {
            "network": "LeNet-300-100",
            "kept": KEPT,
            "batch": batch,
            "sparse_layers": chosen.chosen,
            "test_error": {name: round(error(each), 4) for name, each in networks.items()},
            "widths": {name: widths(each) for name, each in networks.items()},
            "weights": {"dense": matrices(dense), "sparse": pruned.masks.kept, "smaller": matrices(smaller)},
        }
        with torch.no_grad():
            found.append(told({**figures, **compared(ways, rounds)}))
    return found


def run_on(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: model(x)


def widths(model: nn.Module) -> list[int]:
    return [each.out_features for each in model.modules() if isinstance(each, nn.Linear | SparseLinear)]


def matrices(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters() if each.dim() > 1)


def told(figures: dict[str, Any]) -> dict[str, Any]:
    print({name: value for name, value in figures.items() if name != "median_microseconds"}, flush=True)
    return figures


def main() -> None:
    options = arguments(__doc__ or "", rounds=15)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        layers = [linear(share, batch, options.rounds) for share in (0.9, 0.95) for batch in BATCHES]
        convolutions = [
            convolution(*sizes, batch, options.rounds) for batch in (1, 16) for sizes in CONVOLUTIONS
        ]
    best = layers[0]["times_faster_than_dense"]["SparseLinear"]["median"]
    finish(
        options,
        {
            "bar": {"times_faster": 5, "seen": best, "met": best >= 5},
            "layers": layers,
            "convolutions": convolutions,
            "networks": lenet(options.rounds),
        },
    )


if __name__ == "__main__":
    main()
