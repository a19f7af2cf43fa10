"""The pruned networks whose weights `codec.py` codes: trained and pruned here, and kept in a folder."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from torch import nn

from prunekit import Recipe, prune
from prunekit.data import load
from prunekit.models import create
from prunekit.parts.retrain import FineTune
from prunekit.parts.schedule import Explicit
from prunekit.parts.scores import Magnitude
from prunekit.training import Training, train

Weights = dict[str, np.ndarray]

NETWORKS = {
    "lenet_300_100": ("mnist", 1.0, 6, 4, (0.08, 0.05, 3_100 / 266_200)),
    "lenet5": ("mnist", 1.0, 2, 2, (0.08, 0.05, 0.01)),
    "resnet20": ("cifar10", 0.1, 6, 3, (0.2,)),
}
"""Name: data, the share of it, epochs of the dense training, epochs after each removal, kept shares."""


def weights(folder: Path, name: str) -> dict[str, Weights]:
    """The kept share, as a percentage, with the pruned network's weights of more than one dimension.

    Each network goes on from the one before it, in four steps with retraining. They are made to be coded, not
    to be accurate: they are trained briefly, ResNet-20 on a tenth of its images.
    """
    data_name, share, epochs, after, kept_shares = NETWORKS[name]
    files = {f"{100 * kept:.3g}": folder / f"{name}-{100 * kept:.3g}.npz" for kept in kept_shares}
    if not all(path.exists() for path in files.values()):
        _make(name, data_name, share, epochs, after, kept_shares, list(files.values()))
    return {kept: dict(np.load(path)) for kept, path in files.items()}


def _make(
    name: str,
    data_name: str,
    share: float,
    epochs: int,
    after: int,
    kept_shares: tuple[float, ...],
    paths: list[Path],
) -> None:
    data = load(data_name).train
    count = int(share * len(data))
    examples = (data.inputs[:count], data.targets[:count])
    model = create(name, tuple(data.inputs.shape[1:]), 10, seed=0)
    train(model, examples, Training(epochs=epochs, batch_size=128), seed=0)
    before = 1.0
    for kept, path in zip(kept_shares, paths, strict=True):
        steps = [1 - before ** (1 - part) * kept**part for part in (0.25, 0.5, 0.75, 1.0)]
        before = kept
        recipe = Recipe(
            score=Magnitude(),
            schedule=Explicit(values=tuple(steps)),
            retrain=FineTune(training=Training(epochs=after / 4, batch_size=128)),
        )
        model = copy.deepcopy(model)
        prune(model, recipe, examples)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **_weights_of(model))


def _weights_of(model: nn.Module) -> Weights:
    return {
        name: value.detach().numpy()
        for name, value in model.named_parameters()
        if value.dim() > 1 and name.endswith("weight")
    }
