"""A training loop of the user's: masks and parts act at the steps of its optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.masked_optimizer import MaskedOptimizer, check_attachable, hooked
from prunekit.parts.regularize import check_gradients_are_there
from prunekit.parts.schedule import Step
from prunekit.pruning.state import State
from prunekit.pruning.step_work import StepWork
from prunekit.pruning.trainings import Trainings
from prunekit.training import copy_state


@dataclass(eq=False)
class OwnLoop:
    """What a session does in a training loop that is not its own.

    Attributes:
        work: whose masks and parts act.
        go_on: takes the session's next step.
        masked: the optimizer; None where none is attached.
        every: the session advances by itself after so many steps of the optimizer; None where it does not.
    """

    work: StepWork
    go_on: Callable[[], object]
    masked: MaskedOptimizer | None = field(default=None, init=False)
    every: int | None = field(default=None, init=False)

    @property
    def _state(self) -> State:
        return self.work.state

    @property
    def _trainings(self) -> Trainings:
        return self.work.trainings

    def check_possible(self) -> None:
        """Refuse a recipe that trains by itself where a loop of the user's does."""
        recipe = self.work.recipe
        if recipe.quantize.changes:
            raise InputError(
                f"the recipe's {recipe.called('quantize')} acts behind the last step's retraining, of "
                "which a loop of your own knows the end: run the recipe with prune()"
            )

    def check_attachable(self, optimizer: Any, every: int | None) -> None:
        """Refuse what `attach` could not take; see `Session.attach`."""
        self.check_possible()
        if self.masked is not None and self.masked.optimizers:
            raise InputError("the session is attached to an optimizer already: detach() it first")
        check_attachable(self._trainings.model, optimizer, self._state.masks)
        if self._trainings.acting:
            for each in hooked(optimizer):
                check_gradients_are_there("a part of the recipe", each)
        self._check_checkpoint(every)

    def attach(self, optimizer: Optimizer | Sequence[Optimizer], every: int | None) -> None:
        """Let the masks act; see `Session.attach`."""
        self._keep_checkpoint()
        self.every = every
        self.masked = self._act_on(optimizer)
        self.begin()

    def _act_on(self, optimizer: Any, *, resume: bool = False) -> MaskedOptimizer:
        before = self._before_user_step if self._trainings.acting else None
        model, masks = self._trainings.model, self._state.masks
        return MaskedOptimizer(model, optimizer, masks, before=before, after=self._after_step, resume=resume)

    def _check_checkpoint(self, every: int | None) -> None:
        wanted = self.work.recipe.retrain.checkpoint
        own = self.work.inner.state_dict()
        to_come = {} if wanted is None else {wanted: own}  # kept when the loop gets there
        checkpoints = self._state.checkpoints
        self._trainings.check_restart({**to_come, **checkpoints})
        if wanted is not None and wanted not in checkpoints and every is not None and every < wanted:
            raise InputError(
                f"every = {every}: the first step would go back to the values at step {wanted} of the "
                "training, which are still to come"
            )

    def detach(self) -> None:
        """Take the hooks off the optimizer."""
        if self.masked is not None:
            self.masked.remove()
        self.masked = None

    def training_loss(self, inputs: Inputs, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch as the recipe's parts want it; see `Session.training_loss`."""
        loss = self._trainings.task.loss(outputs, targets)
        if not self._state.history:
            return loss
        return self._trainings.batch_loss(self._last_step, self.work.context, inputs, outputs, targets, loss)

    def begin(self, step: Step | None = None) -> None:
        """Let parts see the first batch of a loop of the user's after a step, which is the last one taken."""
        step = self._last_step if step is None and self._state.history else step
        if step is not None and self.masked is not None and self.work.recipe.parts_with("training_loss"):
            self._trainings.begin(self.work.context(step))

    @property
    def _last_step(self) -> Step:
        return self.work.plan.steps[max(len(self._state.history) - 1, 0)]

    def _before_user_step(self) -> None:
        self._trainings.before_optimizer_step(self.work.context(self._last_step))

    def _keep_checkpoint(self) -> None:
        """Keep the values that the recipe rewinds to, when the loop is at that step of its training."""
        steps, checkpoints = self._state.optimizer_steps, self._state.checkpoints
        if self.work.recipe.retrain.checkpoint == steps and steps not in checkpoints:
            checkpoints[steps] = copy_state(self.work.inner)

    def _after_step(self) -> None:
        self._state.optimizer_steps += 1
        self._keep_checkpoint()
        if self.every is not None and self._state.optimizer_steps % self.every == 0:
            self.go_on()

    def resume(self) -> None:
        """Let masks act that are another state's, and the parts see its next batch."""
        if self.masked is not None:
            self.masked.resume(self._state.masks)
        self.begin()

    def __getstate__(self) -> dict[str, Any]:
        """What is saved is attached to no optimizer."""
        return {**vars(self), "masked": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnLoop:
        """One that is attached to the copy of the optimizer, if one is made with it."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(self.__getstate__(), memo))
        if self.masked is not None and self.masked.optimizers:
            twin.masked = twin._act_on(copy.deepcopy(self.masked.groups, memo), resume=True)
            twin.begin()
        return twin
