"""Growing beside pruning: how few hidden units reach an error, on the digits.

`python research/cascade.py` writes docs/results/cascade/results.csv. A cascade is grown unit by unit; a
network of one hidden layer is trained with as many units as `START` and loses them by the oracle, with and
without retraining. All are judged by the squared error, summed over the outputs, on the test part.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import torch

from prunekit import Recipe, prune
from prunekit.data import DataSettings, load
from prunekit.growing import CascadeSettings, grow
from prunekit.losses import LOSSES
from prunekit.models import create
from prunekit.training import Training, train

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "cascade"
START, SEEDS = 20, 3
LEVELS = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15)
CASCADE = CascadeSettings(max_units=START, candidates=4, candidate_epochs=100, output_epochs=100)
TRAINING = Training(epochs=60, batch_size=32, lr=0.005, decay="cosine", loss="squared_error")
BRIEF = {"epochs": 2, "batch_size": 32, "lr": 0.002, "loss": "squared_error"}
MLP = {"name": "mlp", "hidden": [START], "activation": "sigmoid"}
PRUNED = {"oracle": {}, "oracle, retrained": {"retrain": {"name": "fine_tune", "training": BRIEF}}}


def curves(seed: int) -> Iterator[tuple[str, dict[int, float]]]:
    """The error on the test part by the number of hidden units, for each way."""
    data = load(DataSettings(name="digits", seed=seed))
    test = data.test.inputs, data.test.targets

    def error(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(LOSSES["squared_error"](model(test[0]), test[1]))

    grown = grow(CASCADE, data.train.inputs, data.train.targets, validation=test, seed=seed, outputs=10)
    yield "cascade correlation", {row.units: row.validation_error for row in grown.history}
    for label, parts in PRUNED.items():
        model = create(MLP, data.input_shape, data.outputs, seed=seed)
        train(model, data.train, TRAINING, seed=seed)
        found = {START: error(model)}
        recipe = Recipe.parse(
            {
                "score": "oracle",
                "granularity": "unit",
                "schedule": {"name": "fixed_count", "every": 1, "sparsity": 1 - 1 / START},
                **parts,
            }
        )
        pruned = prune(model, recipe, data.train, seed=seed, evaluate=lambda model: {"error": error(model)})
        yield label, found | {record.kept: record.measured["error"] for record in pruned.history}


def fewest(curve: dict[int, float], level: float) -> int:
    """The smallest number of units whose error is not above the level; one more than there are if none."""
    return min((units for units, error in curve.items() if error <= level), default=START + 1)


def main() -> None:
    """Write every curve and print the numbers of units."""
    torch.set_num_threads(1)
    with (FOLDER / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("method", "seed", "units", "test_error"))
        for seed in range(SEEDS):
            for label, curve in curves(seed):
                writer.writerows((label, seed, units, curve[units]) for units in sorted(curve))
                print(seed, label, {level: fewest(curve, level) for level in LEVELS}, flush=True)


if __name__ == "__main__":
    main()
