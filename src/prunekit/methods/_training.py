"""The settings of a retraining, as methods take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.training import Training

TrainingLike = Training | Mapping[str, Any] | None
"""Settings of the retraining beside its epochs: a mapping, or a whole `Training` instead of them."""


def training_of(epochs: float, training: TrainingLike) -> Training:
    """The settings, with this number of epochs unless they say otherwise."""
    if isinstance(training, Training):
        return training
    given = dict(training or {})
    return Training.parse(given if "iterations" in given else {"epochs": epochs, **given})
