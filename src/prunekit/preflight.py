"""What is refused before the first weight goes: all that only the model, recipe and data together tell."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from prunekit.batches import Batches
from prunekit.errors import InputError, ModelError
from prunekit.losses import LOSSES, Loss, default_loss
from prunekit.parts.retrain import Checkpoints, Retrain
from prunekit.recipe import Recipe
from prunekit.targets import unwrap
from prunekit.trial import Use, check_examples


def check_trainings(
    model: nn.Module, recipe: Recipe, checkpoints: Checkpoints, data: Batches | None, *, warm_up: bool
) -> None:
    """Refuse a retraining, or a warm-up that is still to come, that could not start.

    Raises:
        InputError: if it lacks data or values to go back to, or nothing would be left to train.
        ModelError: if all parameters are frozen, or cannot be drawn again.
        DataError: if the data is empty.
    """
    retrain = recipe.retrain
    check_restart(model, retrain, checkpoints)
    trainings = {**(recipe.warm_ups if warm_up else {}), "retrain": retrain.plan}
    for key, training in trainings.items():
        if training is None:
            continue
        part = f"the recipe's {key} {recipe.parts[key].name!r}"
        if data is None:
            raise InputError(f"{part} needs data, but none is given")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ModelError(f"{part} cannot train the model: all its parameters are frozen")
        for regularizer in training.regularize:
            regularizer.check(model)
    if retrain.plan is None or data is None:
        return
    steps = retrain.plan.length(data)
    if retrain.start > steps:
        raise InputError(
            f"retrain {retrain.name}: goes on from step {retrain.start}, "
            f"but the training has only {steps} steps"
        )


def check_data(
    model: nn.Module,
    recipe: Recipe,
    data: Batches | None,
    validation: Batches | None,
    loss: Loss | None,
    *,
    batch: int,
    retraining: bool,
) -> None:
    """Refuse examples that the network or a loss cannot take; neither a weight nor a generator changes.

    Args:
        model: the network.
        recipe: what is done to it.
        data: training examples.
        validation: on which the error is measured that a `stop` looks at; some of the data by default.
        loss: of scores and stops, if it is not the one that goes with the targets.
        batch: how many examples a calibration pass takes at a time.
        retraining: whether the recipe's retraining will be done as well.

    Raises:
        ModelError: if the network fails on the inputs.
        InputError: if a loss cannot be taken of its outputs and the targets.
        DataError: if values are NaN or infinite, or there are no examples.
    """
    inner, training = unwrap(model), recipe.retrain.plan if retraining else None
    warm_ups = recipe.warm_ups.values() if retraining else ()
    builtin = default_loss if loss is None else None

    def usual(outputs: Tensor, targets: Tensor) -> Tensor:
        return (loss or LOSSES[default_loss(targets)])(outputs, targets)

    def stopping(outputs: Tensor, targets: Tensor) -> Tensor:
        return recipe.stop.error(outputs, targets, usual)

    def retrained(outputs: Tensor, targets: Tensor) -> Tensor:
        assert training is not None
        for part in recipe.parts.values():
            part.check_batch(outputs, targets)
        return training.loss_of(outputs, targets)

    uses: list[Use] = []
    measured: list[Use] = []
    if recipe.needs_data:
        with_loss = recipe.allocation.needs_data or any(need.needs_loss for need in recipe.needs)
        uses.append(Use(usual, builtin, batch) if with_loss else Use(None, None, batch))
    if data is not None and training is not None and training.length(data) > recipe.retrain.start:
        uses.append(Use(retrained, training.loss_named, training.batch_size, train=True))
    for each in warm_ups:
        if data is not None and each.length(data):
            uses.append(Use(each.loss_of, each.loss_named, each.batch_size, train=True))
    if recipe.stop.needs_data:
        (uses if validation is None else measured).append(Use(stopping, builtin, batch))
    if data is not None:
        check_examples(inner, "the data", data, uses)
    if validation is not None:
        check_examples(inner, "the validation data", validation, measured)


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
