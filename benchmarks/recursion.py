"""The published recursion of second derivatives against the exact ones, layer by layer.

    python benchmarks/recursion.py --json FILE

Logistic units and outputs, squared error, trained briefly on MNIST (PRUNEKIT_DATA names the folder that
holds it): 784-100-10, 784-50-50-10, and 3, 4 and 5 hidden layers of 50. For each hidden layer: how far the
recursion of Wolfe, Sharma and Raj (arXiv 1701.04465) is from the exact d2E/dgain2, and how far the exact
one is from central differences of the error, which share nothing with it. All in float64 on one thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.batches import TensorBatches
from prunekit.data import load
from prunekit.graph import chain_of
from prunekit.losses import squared_error
from prunekit.training import Training, train
from prunekit.units import diagonal_recursion, gain_derivatives

HIDDEN = ([100], [50, 50], [50, 50, 50], [50] * 4, [50] * 5)
EXAMPLES = 1000
STEP = 1e-3  # of the gain: the rounding of the error goes with its square, the truncation too
UNITS = 10  # of each layer are differenced


def network(hidden: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in zip([784, *hidden], [*hidden, 10], strict=True):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight, gain=4.0)  # or deep logistic layers do not learn
        layers += [linear, nn.Sigmoid()]
    return nn.Sequential(*layers)


@torch.no_grad()
def differences(model: nn.Module, consumer: str, inputs: Tensor, targets: Tensor) -> Tensor:
    """(UNITS,): (E(1 + h) - 2 E(1) + E(1 - h)) / h^2; a gain acts on the weights that read the unit."""
    weight = model.get_parameter(f"{consumer}.weight")
    found = []
    for unit in range(UNITS):
        saved = weight[:, unit].clone()
        errors = []
        for gain in (1 + STEP, 1.0, 1 - STEP):
            weight[:, unit] = saved * gain
            errors.append(float(squared_error(model(inputs), targets)))
        weight[:, unit] = saved
        found.append((errors[0] - 2 * errors[1] + errors[2]) / STEP**2)
    return torch.tensor(found, dtype=torch.float64)


def deviation(recursion: Tensor, exact: Tensor) -> dict[str, float]:
    """How far second derivatives (units,) of the recursion are from the exact ones: of the sums of sizes, and
    unit by unit."""
    off_by = (recursion - exact).abs()
    relative = off_by / exact.abs().clamp_min(torch.finfo(torch.float64).tiny)
    relative[off_by == 0] = 0.0
    return {
        "overall": float(off_by.sum() / exact.abs().sum()),
        "median": float(relative.median()),
        "worst": float(relative.max()),
    }


def measure(hidden: Sequence[int], epochs: float) -> dict[str, Any]:
    data = load("mnist")
    torch.manual_seed(0)
    model = network(hidden)
    train(
        model,
        TensorBatches(data.train.inputs, data.train.targets),
        Training(epochs=epochs, batch_size=128, lr=0.005, decay="cosine", loss="squared_error"),
        seed=0,
    )
    model = model.double().eval()
    with torch.no_grad():
        right = float((model(data.test.inputs.double()).argmax(1) == data.test.targets).double().mean())
    inputs, targets = data.train.inputs[:EXAMPLES].double(), data.train.targets[:EXAMPLES]
    chain = chain_of(model, inputs)
    exact = gain_derivatives(chain, inputs, targets, squared_error)
    published = diagonal_recursion(chain, inputs, targets, squared_error)
    rows = []
    for place, group in enumerate(chain.groups):
        second, recursion = exact[group.name].second, published[group.name].second
        assert second is not None
        assert recursion is not None
        differenced = differences(model, group.consumer, inputs, targets)
        gap = (second[:UNITS] - differenced).abs()
        rows.append(
            {
                "hidden_layer": place + 1,
                "recursion_from_exact": deviation(recursion, second),
                "exact_from_central_differences": float(gap.sum() / differenced.abs().sum()),
            }
        )
    return {
        "network": "-".join(str(size) for size in [784, *hidden, 10]),
        "test_accuracy": right,
        "layers": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--epochs", type=float, default=3.0, help="of training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "examples": EXAMPLES,
        "epochs": options.epochs,
        "step_of_the_gain": STEP,
        "overall": "sum over the units of |recursion - exact| as a fraction of the sum of |exact|",
        "networks": [measure(hidden, options.epochs) for hidden in HIDDEN],
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
