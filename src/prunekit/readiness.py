"""What is refused before the first weight goes: all that only the model, recipe and data together tell."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from prunekit.batches import Batches
from prunekit.errors import InputError, ModelError
from prunekit.retrain import Checkpoints, Retrain
from prunekit.targets import unwrap


def check_retraining(
    model: nn.Module, retrain: Retrain, checkpoints: Checkpoints, data: Batches | None
) -> None:
    """Refuse a retraining that could not start.

    Raises:
        InputError: if it lacks data or values to go back to, or nothing would be left to train.
        ModelError: if all parameters are frozen, or cannot be drawn again.
        DataError: if the data is empty.
    """
    check_restart(model, retrain, checkpoints)
    training = retrain.plan
    if training is None:
        return
    if data is None:
        raise InputError(f"the recipe's retrain {retrain.name!r} needs data, but none is given")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"the recipe's retrain {retrain.name!r} cannot train the model: all its parameters are frozen"
        )
    for regularizer in training.regularize:
        regularizer.check(model)
    steps = training.length(data)
    if retrain.start > steps:
        raise InputError(
            f"retrain {retrain.name}: goes on from step {retrain.start}, "
            f"but the training has only {steps} steps"
        )


def check_restart(model: nn.Module, retrain: Retrain, checkpoints: Checkpoints) -> None:
    """Refuse values to go back to that are missing or another model's."""
    retrain.check(model, checkpoints)
    if retrain.checkpoint is not None:
        _check_fits(unwrap(model).state_dict(), checkpoints[retrain.checkpoint], retrain)


def _check_fits(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], retrain: Retrain) -> None:
    place = f"retrain {retrain.name}: the values at step {retrain.checkpoint} are another model's"
    different = sorted(set(own) ^ set(saved))
    if different:
        side = "they lack" if different[0] in own else "the model lacks"
        raise InputError(f"{place}: {side} {different[0]}")
    for name, value in own.items():
        if value.shape != saved[name].shape:
            raise InputError(
                f"{place}: {name} has shape {tuple(saved[name].shape)}, in the model {tuple(value.shape)}"
            )
