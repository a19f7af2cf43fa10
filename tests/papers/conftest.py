"""Handwritten digits of scikit-learn and a network trained on them, once for all papers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prunekit.batches import TensorBatches
from prunekit.training import State, Training, train

Split = tuple[Tensor, Tensor]
TRAINING = Training(epochs=15, lr=2e-3, batch_size=64)


@dataclass
class Digits:
    """A trained network, where it started, and what it is trained and judged on."""

    network: nn.Module
    checkpoints: dict[int, State]
    train: Split
    test: Split

    def model(self) -> nn.Module:
        """A copy of the trained network."""
        return copy.deepcopy(self.network)

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        """The share of the test digits that are read wrong."""
        inputs, targets = self.test
        return float((model.eval()(inputs).argmax(1) != targets).float().mean())


@pytest.fixture(scope="session")
def digits() -> Digits:
    inputs, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(inputs, dtype=torch.float32)[order] / 16
    y = torch.tensor(targets)[order]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    found = Digits(model, {}, (x[:1200], y[:1200]), (x[1200:], y[1200:]))
    train(
        model, TensorBatches(*found.train), TRAINING, seed=0,
        checkpoints=(0, 20), on_checkpoint=found.checkpoints.__setitem__,
    )  # fmt: skip
    return found
