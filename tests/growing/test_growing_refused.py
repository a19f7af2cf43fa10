"""Bad input gives one clear error, before anything is trained."""

import math
from typing import Any

import pytest
import torch

from prunekit.errors import DataError, InputError, PrunekitError
from prunekit.growing import CascadeRow, CascadeSettings, grow, smallest_units
from prunekit.training import TrainingError

X = torch.linspace(-1, 1, 12).reshape(6, 2)
Y = torch.tensor([0, 1, 0, 1, 0, 1])
VALUES = torch.linspace(0, 1, 6)[:, None]


def with_one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[3] = value
    return changed


@pytest.mark.parametrize(
    ("inputs", "targets", "more", "error", "message"),
    [
        (X[:0], Y[:0], {}, DataError, "inputs of shape .* are empty"),
        (X[:, :0], Y, {}, DataError, "inputs of shape .* are empty"),
        (X, VALUES[:, :0], {}, DataError, "targets of shape .* are empty"),
        (with_one(X, math.nan), Y, {}, DataError, "training inputs hold NaN or infinity"),
        (X, with_one(VALUES, math.inf), {}, DataError, "training targets hold NaN or infinity"),
        (X, Y[:5], {}, DataError, "6 training inputs"),
        (X, torch.tensor(1), {}, DataError, "6 training inputs"),
        (X[:, 0], Y, {}, InputError, "inputs must be floating point of shape"),
        (X.long(), Y, {}, InputError, "inputs must be floating point of shape"),
        (X.tolist(), Y, {}, InputError, "inputs must be a tensor, not list"),
        (X, None, {}, InputError, "targets must be a tensor, not NoneType"),
        (X, VALUES[:, 0], {}, InputError, "targets must be int64 class numbers"),
        (X, Y.int(), {}, InputError, "targets must be int64 class numbers"),
        (X, Y[:, None], {}, InputError, "targets must be int64 class numbers"),
        (X, Y - 1, {}, DataError, "run from -1 to 0"),
        (X, Y, {"outputs": 1}, DataError, "numbered 0 to 0: give their number as outputs="),
        (X, VALUES, {"outputs": 2}, InputError, r"values \(N, 2\)"),
        (X, Y, {"validation": (X, Y + 1)}, DataError, "validation targets run from 1 to 2"),
        (X, Y, {"validation": (X[:, :1], Y)}, InputError, "validation inputs have 1 features, training 2"),
        (X, Y, {"validation": (X, VALUES.expand(6, 2))}, InputError, "must both be classes"),
        (X, Y, {"validation": (with_one(X, math.nan), Y)}, DataError, "validation inputs hold NaN"),
        (X, Y, {"validation": X}, InputError, "validation must be a pair of tensors"),
    ],
)
def test_examples(inputs: Any, targets: Any, more: dict[str, Any], error: type[PrunekitError], message: str):
    with pytest.raises(error, match=message):
        grow(CascadeSettings(max_units=1), inputs, targets, seed=0, **more)


def test_cross_entropy_needs_classes():
    with pytest.raises(InputError, match="cross_entropy needs targets of int64 class numbers"):
        grow(CascadeSettings(loss="cross_entropy"), X, VALUES, seed=0)


def test_numbers_beyond_the_type_are_said():
    with pytest.raises(TrainingError, match="not finite with 0 units: standardise"):
        grow(CascadeSettings(), X, 1e30 * VALUES, seed=0)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"max_units": -1}, "max_units"),
        ({"max_units": 1.5}, "max_units"),
        ({"target_error": math.nan}, "target_error"),
        ({"activation": "relu"}, "activation"),
        ({"loss": "linear"}, "loss"),
        ({"candidates": 0}, "candidates"),
        ({"candidate_lr": 0}, "candidate_lr"),
        ({"output_patience": 0}, "output_patience"),
        ({"units": 3}, "unknown key 'units'"),
    ],
)
def test_settings(values: dict[str, Any], place: str):
    with pytest.raises(InputError, match=place):
        CascadeSettings(**values)


def test_settings_are_plain_values_and_back():
    settings = CascadeSettings(max_units=3, activation="gaussian")
    assert CascadeSettings.parse(settings.to_dict()) == settings


def test_settings_of_another_kind():
    with pytest.raises(InputError, match="settings must be CascadeSettings, not dict"):
        grow({"max_units": 1}, X, Y, seed=0)  # type: ignore[arg-type]


def test_smallest_units():
    history = [CascadeRow(0, 1.0, None, None, None, None, 0.0)]
    with pytest.raises(InputError, match="no validation error"):
        smallest_units(history, 0.5, of="validation")
    with pytest.raises(InputError, match="not NaN"):
        smallest_units(history, math.nan)
    with pytest.raises(InputError, match="'train' or 'validation', not 'test'"):
        smallest_units(history, 0.5, of="test")  # type: ignore[arg-type]
