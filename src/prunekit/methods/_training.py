"""The settings of a retraining, as methods take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.errors import InputError
from prunekit.messages import shown
from prunekit.training import Training

TrainingLike = Training | Mapping[str, Any] | None
"""Settings of the retraining beside its epochs: a mapping, or a whole `Training` instead of them."""


def training_of(epochs: float, training: TrainingLike, *, shares: int = 1) -> Training:
    """The settings, with this number of epochs unless they say otherwise.

    Args:
        epochs: of all of it.
        training: the settings.
        shares: the number of trainings among which the epochs are shared out.

    Raises:
        InputError: where one of them is no such number.
    """
    if isinstance(training, Training):
        return training
    given = given_of(training)
    whole = Training(epochs=epochs).epochs
    if whole is None:
        raise InputError("epochs: a number is needed, not None")
    if "iterations" in given:
        return Training.parse(given)
    return Training.parse({"epochs": whole / shares, **given})


def given_of(training: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is said of a training.

    Raises:
        InputError: if it is no mapping.
    """
    if training is not None and not isinstance(training, Mapping):
        raise InputError(f"training: a mapping of settings, or a Training, is needed, not {shown(training)}")
    return dict(training or {})
