"""The examples that a pruning looks at, the errors that it measures on them, and how it is ended by one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunekit.batches import Batch, Batches
from prunekit.errors import DataError, PrunekitError
from prunekit.losses import LOSSES, Loss, default_loss
from prunekit.masks import Masks
from prunekit.parts.granularity import Elements
from prunekit.parts.stopping import Stop
from prunekit.recipe import Recipe
from prunekit.seeds import derive
from prunekit.statistics.collect import average, count_processes
from prunekit.trial import Use, check_examples, check_finite

BATCH = 256
"""Examples per batch of a calibration pass; a bound on memory, results do not depend on it."""


class Calibration:
    """The same sample of the training data in every step, on the network's device.

    Args:
        model: the network, without wrappers.
        elements: what is removed from it.
        data: training examples, if any are given.
        validation: on which the error is measured that a `stop` looks at; the sample, by default.
        examples: how many of the training data.
        seed: of the sample.
        loss: (outputs, targets) -> mean loss; by default cross-entropy or squared error, by the targets.
    """

    def __init__(
        self,
        model: nn.Module,
        elements: Elements,
        data: Batches | None,
        validation: Batches | None,
        *,
        examples: int,
        seed: int,
        loss: Loss | None,
    ) -> None:
        self._model, self._elements = model, elements
        self.data, self._validation = data, validation
        self._examples, self._seed, self._loss = examples, seed, loss

    @property
    def device(self) -> torch.device:
        """Where the network is now."""
        return self._model.get_parameter(next(iter(self._elements.parameters))).device

    def check(self, recipe: Recipe, *, retraining: bool) -> None:
        """Refuse examples that the network or a loss cannot take; neither a weight nor a generator changes.

        All processes refuse together: one that stopped alone would leave the others waiting for it.

        Args:
            recipe: what is done to the network.
            retraining: whether the recipe's trainings will be done as well.

        Raises:
            ModelError: if the network fails on the inputs.
            InputError: if a loss cannot be taken of its outputs and the targets.
            DataError: if values are NaN or infinite, or there are no examples.
        """
        if not (recipe.needs_data or recipe.stop.needs_data or (retraining and recipe.trains)):
            return
        wrong = None
        try:
            self._check(recipe, retraining)
        except PrunekitError as error:
            wrong = error
        refusing, _ = count_processes(wrong is not None, self.device)
        if wrong is not None:
            raise wrong
        if refusing:
            raise DataError("the examples of another process cannot be taken: see what it says")

    def _check(self, recipe: Recipe, retraining: bool) -> None:
        data, training = self.data, recipe.retrain.plan if retraining else None
        builtin = default_loss if self._loss is None else None

        def stopping(outputs: Tensor, targets: Tensor) -> Tensor:
            return recipe.stop.error(outputs, targets, self.loss)

        def retrained(outputs: Tensor, targets: Tensor) -> Tensor:
            assert training is not None
            for part in recipe.parts.values():
                part.check_batch(outputs, targets)
            return training.loss_of(outputs, targets)

        uses: list[Use] = []
        measured: list[Use] = []
        if recipe.needs_data:
            with_loss = recipe.allocation.needs_data or any(need.needs_loss for need in recipe.needs)
            uses.append(Use(self.loss, builtin, BATCH) if with_loss else Use(None, None, BATCH))
        if data is not None and training is not None and training.length(data) > recipe.retrain.start:
            uses.append(Use(retrained, training.loss_named, training.batch_size, train=True))
        for each in recipe.warm_ups.values() if retraining else ():
            if data is not None and each.length(data):
                uses.append(Use(each.loss_of, each.loss_named, each.batch_size, train=True))
        if recipe.stop.needs_data:
            (uses if self._validation is None else measured).append(Use(stopping, builtin, BATCH))
        if data is not None:
            check_examples(self._model, "the data", data, uses)
        if self._validation is not None:
            check_examples(self._model, "the validation data", self._validation, measured)

    def batches(self) -> Iterator[Batch]:
        """The sample; nothing without data."""
        if self.data is None:
            return iter(())
        return self._placed(self.data.sample(self._examples, BATCH, derive(self._seed, "calibration")))

    def watched(self, wrong: list[DataError]) -> Iterator[Batch]:
        """The same, for statistics without a loss in which NaN would be seen.

        Args:
            wrong: to it is added what is to be said of batches whose targets are NaN or infinite, or whose
                inputs are, and the network's outputs as well; statistics that look for it say more, and not
                before all processes have added up theirs.
        """
        for number, batch in enumerate(self.batches()):
            try:
                check_finite(self._model, f"batch {number} of the calibration data", *batch)
            except DataError as error:
                wrong.append(error)
            yield batch

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch."""
        return (self._loss or LOSSES[default_loss(targets)])(outputs, targets)

    def error(self, stop: Stop) -> float:
        """What a rule measures of the network as it is."""
        return average(
            self._model,
            self.batches() if self._validation is None else self._placed(self._validation.epoch(0, BATCH, 0)),
            lambda outputs, targets: stop.error(outputs, targets, self.loss),
            self.device,
        )

    @torch.no_grad()
    def loss_with(self, kept: Masks) -> float:
        """The loss on the sample if only this were kept; the weights are put back afterwards."""
        model = self._model
        masks = self._elements.masks(kept)
        saved = [(parameter, parameter.detach().clone()) for parameter, _ in masks.parameters(model)]
        try:
            masks.apply(model)
            mean = average(model, self.batches(), self.loss, self.device)
        finally:
            for parameter, values in saved:
                parameter.copy_(values)
        if not math.isfinite(mean):
            raise DataError(f"the loss on the calibration data is {mean}: layers cannot be compared by it")
        return mean

    def _placed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        device = self.device
        return ((inputs.to(device), targets.to(device)) for inputs, targets in batches)


def two_examples(model: nn.Module, data: Batches) -> Tensor:
    """Inputs that a network can be run on, on its device.

    Raises:
        DataError: if there are none, on one of the processes.
    """
    device = next(model.parameters()).device
    batch = next(iter(data.sample(2, 2, 0)), None)
    without, processes = count_processes(batch is None, device)
    if batch is None or without:
        where = "" if processes == 1 else f" on {without} of {processes} processes"
        raise DataError(f"the data is empty{where}: there is no example to run the network on")
    inputs, _ = batch
    return inputs[:2].to(device)
