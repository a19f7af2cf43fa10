"""What a method is: its errors name its own settings, and a retraining is a few of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

from prunekit.errors import InputError, shown
from prunekit.recipe import Recipe
from prunekit.training import Training

Taken = ParamSpec("Taken")


def method(function: Callable[Taken, Recipe]) -> Callable[Taken, Recipe]:
    """A method whose errors name its own setting, and not only that of the part that refused the value."""

    @wraps(function)
    def explained(*args: Taken.args, **kwargs: Taken.kwargs) -> Recipe:
        try:
            return function(*args, **kwargs)
        except (InputError, TypeError, ArithmeticError) as error:
            try:
                given = inspect.signature(function).bind(*args, **kwargs).arguments
            except TypeError:
                raise error from None  # a call that Python itself refuses
            blamed = "".join(f"{name} = {shown(given[name])}: " for name in _blamed(function, given))
            raise InputError(f"method {function.__name__}: {blamed}{error}") from None

    return explained


def _blamed(function: Callable[..., Recipe], given: Mapping[str, Any]) -> list[str]:
    """The setting without which there is no error, as far as it is one alone."""
    for name in given:
        try:
            function(**{key: value for key, value in given.items() if key != name})
        except (InputError, TypeError, ArithmeticError):
            continue
        return [name]
    return []


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
