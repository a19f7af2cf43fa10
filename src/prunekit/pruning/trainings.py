"""The trainings of a pruning, what its parts carry from step to step, and what they do in a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.batches import Batches
from prunekit.parts.base import BatchLoss, Part
from prunekit.parts.context import StepContext
from prunekit.recipe import Recipe
from prunekit.targets import uncompiled
from prunekit.training import Report, train, training_seed

States = dict[str, dict[str, Tensor]]
"""By the recipe's key of a part, the tensors that it carries."""


class Trainings:
    """Trains the network before the first removal and after steps, as the parts of a recipe ask.

    Args:
        model: the network, also one that is compiled.
        recipe: with the parts.
        data: training examples.
        seed: of the order of the data.
        names: the parameters that may be pruned, by full name.
        inner: the network without wrappers.

    Attributes:
        states: what the parts carry; they change it in place.
        acting: whether a part does anything at the steps of an optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        data: Batches | None,
        seed: int,
        names: Sequence[str],
        inner: nn.Module,
    ) -> None:
        self._model, self._recipe, self._data, self._seed = model, recipe, data, seed
        found = {key: part.initial_state(inner, names) for key, part in recipe.parts.items()}
        self.states: States = {key: state for key, state in found.items() if state}
        hooks = [type(part).before_optimizer_step for part in recipe.parts.values()]
        self.acting = any(hook is not Part.before_optimizer_step for hook in hooks)
        self._batch_loss: BatchLoss | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes the loss of batches anew, from the states that it has for itself."""
        return {**vars(self), "_batch_loss": None}

    def copy_states(self) -> States:
        """The same values in tensors of their own."""
        return {
            key: {name: each.clone() for name, each in state.items()} for key, state in self.states.items()
        }

    def resume(self, states: States) -> None:
        """Go on from there."""
        self.states, self._batch_loss = states, None

    @torch.no_grad()
    def before_step(self, context: StepContext) -> None:
        """Let each part do what it does at the beginning of a step of the pruning."""
        self._batch_loss = None
        for key, part in self._recipe.parts.items():
            part.before_step(context.told(key))

    @torch.no_grad()
    def before_optimizer_step(self, context: StepContext) -> None:
        """Let each part do what it does before a step of an optimizer."""
        for key, part in self._recipe.parts.items():
            part.before_optimizer_step(context.told(key))

    def warm_up(self, context: StepContext, report: Report | None) -> None:
        """The trainings before the first removal."""
        for key, training in self._recipe.warm_ups.items():
            assert self._data is not None
            train(
                uncompiled(self._model),
                self._data,
                training,
                seed=training_seed(self._seed, "warm_up", key),
                masks=context.masks,
                before_step=self._hook(context),
                report=report,
            )

    def retrain(self, context: StepContext, report: Report | None) -> float | None:
        """The training after a step, with what the parts make of its loss.

        Returns:
            The mean loss of its last epoch; None without any step.
        """
        training = self._recipe.retrain.plan
        if training is None:
            return None
        assert self._data is not None
        trained = train(
            uncompiled(self._model),
            self._data,
            training,
            seed=training_seed(self._seed, "retrain", context.step.number),
            masks=context.masks,
            loss=self._loss_of_batches(context),
            before_step=self._hook(context),
            start=self._recipe.retrain.start,
            report=report,
        )
        return trained.loss if trained.iterations else None

    def batch_loss(
        self,
        context: Callable[[], StepContext],
        inputs: Tensor,
        outputs: Tensor,
        targets: Tensor,
        loss: Tensor,
    ) -> Tensor:
        """What the parts make of the loss of one batch of a loop of the user's, after a step.

        The context is asked for at the first batch after a step only.
        """
        if self._batch_loss is None:
            for part in self._recipe.parts.values():
                part.check_batch(outputs, targets)
            self._batch_loss = self._loss_of_batches(context()) or _InTurn(())
        return self._batch_loss(inputs, outputs, targets, loss)

    def _loss_of_batches(self, context: StepContext) -> BatchLoss | None:
        found = [part.training_loss(context.told(key)) for key, part in self._recipe.parts.items()]
        losses = [each for each in found if each is not None]
        return _InTurn(losses) if losses else None

    def _hook(self, context: StepContext) -> Callable[[], None] | None:
        return (lambda: self.before_optimizer_step(context)) if self.acting else None


class _InTurn:
    """Losses of a batch, each made of the one before it."""

    def __init__(self, losses: Sequence[BatchLoss]) -> None:
        self._losses = losses

    def __call__(self, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        for each in self._losses:
            loss = each(inputs, outputs, targets, loss)
        return loss
