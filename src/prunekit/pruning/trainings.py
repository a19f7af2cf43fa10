"""The trainings of a pruning, and what its parts do in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.batches import Batch, Batches, Inputs
from prunekit.distributed import processes, trained_as_one
from prunekit.errors import InputError, ModelError, naming, shown
from prunekit.parts.base import BatchLoss
from prunekit.parts.context import StepContext
from prunekit.parts.retrain import Checkpoints, Retrain
from prunekit.parts.schedule import Step
from prunekit.pruning.calibration import two_examples
from prunekit.recipe import Recipe
from prunekit.seeds import derive
from prunekit.targets import uncompiled, unwrap
from prunekit.task import PLAIN, Task
from prunekit.training import Loop, Report, Trained, Training, TrainingPart, train


@dataclass(eq=False)
class Trainings:
    """Trains the network before the first removal and after steps, as the parts of a recipe ask.

    Attributes:
        model: the network, also one that is compiled.
        inner: the network without wrappers.
        recipe: with the parts.
        data: training examples.
        seed: of the order of the data.
        task: how the network is fed a batch, and what its loss is.
        loop: what of the trainings' loop is the user's own.
    """

    model: nn.Module
    inner: nn.Module
    recipe: Recipe
    data: Batches | None
    seed: int
    task: Task = PLAIN
    loop: Loop | None = None
    _batch_loss: tuple[Step, BatchLoss] | None = field(default=None, init=False)
    _tried: Step | None = field(default=None, init=False)

    def check(self, checkpoints: Checkpoints, *, warm_up: bool) -> None:
        """Refuse a retraining, or a warm-up that is still to come, that could not start.

        Raises:
            InputError: if it lacks data or values to go back to, or nothing would be left to train.
            ModelError: if all parameters are frozen, or cannot be drawn again.
            DataError: if the data is empty.
        """
        retrain = self.recipe.retrain
        self.check_restart(checkpoints)
        trainings = [
            *(self.recipe.warm_ups.items() if warm_up else ()),
            ("retrain", retrain.plan),
            *(("quantize", training) for training in self.recipe.quantize.plans),
        ]
        for key, training in trainings:
            if training is None or (key == "retrain" and self.data is None and training.without_steps):
                continue
            part = f"the recipe's {self.recipe.called(key)}"
            if self.data is None:
                without = "; epochs = 0 or the retrain 'none' needs none" if key == "retrain" else ""
                raise InputError(f"{part} needs data, but none is given{without}")
            if processes() > 1 and not trained_as_one(uncompiled(self.model)):
                raise InputError(
                    f"{part} trains in {processes()} processes, each of which would go its own way: give "
                    "prune() the model in DistributedDataParallel"
                )
            if not any(parameter.requires_grad for parameter in self.inner.parameters()):
                raise ModelError(f"{part} cannot train the model: all its parameters are frozen")
            start = retrain.start if key == "retrain" else 0
            for regularizer in training.regularize:
                by_example = regularizer.by_example
                regularizer.check(
                    self.inner, two_examples(self.model, self.data).inputs if by_example else None
                )
                with naming(part):
                    regularizer.of_length(max(self._steps(training, self.data) - start, 0))
        if retrain.plan is None or self.data is None:
            return
        if self.loop is not None and retrain.continues and not self.loop.interrupts:
            raise InputError(
                f"retrain {retrain.name}: is one training that the steps interrupt; it goes on with the "
                "settings' own optimizer and decay, not with those of a loop: use 'fine_tune'"
            )
        steps = self._steps(retrain.plan, self.data)
        if retrain.start > steps:
            raise InputError(
                f"retrain {retrain.name}: goes on from step {retrain.start}, "
                f"but the training has only {steps} steps"
            )

    def _steps(self, training: Training, data: Batches) -> int:
        return training.length(data, 1 if self.loop is None else self.loop.accumulate)

    def check_restart(self, checkpoints: Checkpoints) -> None:
        """Refuse values to go back to that are missing or another model's."""
        retrain = self.recipe.retrain
        if retrain.changes:
            retrain.check(self.inner, checkpoints)
        if retrain.checkpoint is not None:
            _check_fits(self.inner.state_dict(), checkpoints[retrain.checkpoint], retrain)

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes the loss of batches anew, from the states that it has for itself."""
        return {**vars(self), "_batch_loss": None, "_tried": None}

    def forget_batch_loss(self) -> None:
        """Let the parts make the loss of batches anew: what it was made from has changed."""
        self._batch_loss = self._tried = None

    @property
    def acting(self) -> bool:
        """Whether a part does anything at the steps of an optimizer."""
        return bool(self.recipe.parts_with("before_optimizer_step"))

    @torch.no_grad()
    def before_optimizer_step(self, context: StepContext) -> None:
        """Let each part do what it does before a step of an optimizer."""
        for key, part in self.recipe.parts_with("before_optimizer_step"):
            part.before_optimizer_step(context.told(key))

    def as_one(
        self, report: Report, step: Step, steps: int, *, warm_up: bool, retrain: bool, quantize: bool
    ) -> Report:
        """What tells a report of all trainings of a step as if they were one.

        Args:
            report: told how far they are together.
            step: which it is.
            steps: how many the pruning has in all.
            warm_up, retrain, quantize: which trainings it has.
        """
        assert self.data is not None
        lengths = []
        if warm_up:
            lengths += [self._steps(training, self.data) for training in self.recipe.warm_ups.values()]
        plan = self.recipe.retrain.plan
        if retrain and plan is not None:
            length = self._steps(plan, self.data)
            part = self._part(step, steps, {})
            first, end, _ = (0, length, length) if part is None else part.span(length)
            lengths.append(end - first)
        if quantize:
            lengths += [self._steps(training, self.data) for training in self.recipe.quantize.plans]
        return _OneReport(report, sum(lengths))

    def warm_up(self, context: StepContext, report: Report | None) -> None:
        """The trainings before the first removal."""
        for key, training in self.recipe.warm_ups.items():
            self._train(training, context, derive(self.seed, "training", "warm_up", key), report=report)

    def retrain(self, context: StepContext, steps: int, report: Report | None) -> float | None:
        """The training after a step, with what the parts make of its loss.

        Args:
            context: of the step.
            steps: how many the pruning has in all.
            report: told how far it is.

        Returns:
            The mean loss of its last epoch; None without any step.
        """
        retrain = self.recipe.retrain
        assert retrain.plan is not None
        if self.data is None:  # `check` has let it pass: there is no step to take
            return None
        seed = derive(self.seed, "training", "retrain", context.step.number)
        part = self._part(context.step, steps, context.told("retrain").state)
        if part is not None:
            seed = derive(self.seed, "training", "retrain")  # one order of the data for all parts
        loss = self._loss_of_batches(context)
        trained = self._train(
            retrain.plan, context, seed, loss=loss, start=retrain.start, part=part, report=report
        )
        return trained.loss if trained.iterations else None

    def _part(self, step: Step, steps: int, state: Mapping[str, Tensor]) -> TrainingPart | None:
        """The part after a step of a retraining that the steps interrupt; None of any other."""
        retrain, every = self.recipe.retrain, self.recipe.retrain_every
        if not retrain.continues:
            return None
        return retrain.part(-(-step.number // every) - 1, -(-steps // every), state)

    def quantize(self, context: StepContext, report: Report | None) -> None:
        """Few values for the weights, and their trainings, with what the parts make of the loss."""
        for number, (values, training) in enumerate(self.recipe.quantize.stages(context.told("quantize"))):
            if training is not None:
                seed = derive(self.seed, "training", "quantize", *([number] if number else []))
                loss = self._loss_of_batches(context)
                self._train(training, context, seed, loss=loss, attach=values.attach, report=report)
            values.settle()

    def _train(self, training: Training, context: StepContext, seed: int, **more: Any) -> Trained:
        assert self.data is not None
        hook = (lambda: self.before_optimizer_step(context)) if self.acting else None
        model = uncompiled(self.model)
        return train(
            model,
            self.data,
            training,
            task=self.task,
            loop=self.loop,
            seed=seed,
            masks=context.masks,
            before_step=hook,
            **more,
        )

    def batch_loss(
        self,
        step: Step,
        context: Callable[[Step], StepContext],
        inputs: Inputs,
        outputs: Any,
        targets: Any,
        loss: Tensor,
    ) -> Tensor:
        """What the parts make of the loss of one batch of a loop of the user's, after a step.

        The context is asked for only where the step was not begun.
        """
        if self._tried != step:
            for _, part in self.recipe.parts_with("check_batch"):
                part.check_batch(outputs, targets, self.task)
            self._tried = step
        if self._batch_loss is None or self._batch_loss[0] != step:
            self.begin(context(step))
        assert self._batch_loss is not None
        return self._batch_loss[1](Batch(inputs, targets), outputs, targets, loss)

    def begin(self, context: StepContext) -> None:
        """Let the parts make the loss of batches of a loop of the user's, and watch the first of them."""
        self._batch_loss = context.step, self._loss_of_batches(context) or _in_turn(())

    def _loss_of_batches(self, context: StepContext) -> BatchLoss | None:
        parts = self.recipe.parts_with("training_loss")
        found = [part.training_loss(context.told(key, task=self.task)) for key, part in parts]
        losses = [each for each in found if each is not None]
        return _in_turn(losses) if losses else None


class _OneReport:
    """Tells how far trainings are that follow on one another, each from where the one before it ended."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._before = report, total, 0

    def __call__(self, done: int, total: int) -> None:
        self._report(self._before + done, self._total)
        if done == total:
            self._before += total


def _in_turn(losses: Sequence[BatchLoss]) -> BatchLoss:
    """Losses of a batch, each made of the one before it."""

    def loss_of(batch: Batch, outputs: Any, targets: Any, loss: Tensor) -> Tensor:
        for each in losses:
            loss = each(batch, outputs, targets, loss)
        return loss

    return loss_of


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


def check_apart(model: nn.Module, checkpoints: Checkpoints) -> None:
    """Refuse values to go back to that share their memory with the network, and so change with it.

    Raises:
        InputError: naming the first of them, or what is no state of a step.
    """
    for step, state in checkpoints.items():
        if not isinstance(step, Integral) or not isinstance(state, Mapping):
            raise InputError(
                "checkpoints must be states by the steps of the training after which they were taken, as "
                f"{{0: copy.deepcopy(model.state_dict())}}, not {shown(step)}: {type(state).__name__}"
            )
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values() if value.numel()}
    for step, state in checkpoints.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.numel() and value.untyped_storage().data_ptr() in own:
                raise InputError(
                    f"checkpoints: step {step}: {name} shares its memory with the model, so it changes "
                    "with it: keep copy.deepcopy(model.state_dict())"
                )


def checked_teacher(
    teacher: nn.Module | None,
    recipe: Recipe,
    model: nn.Module,
    inner: nn.Module,
    data: Batches | None,
    task: Task,
) -> nn.Module | None:
    """The teacher, if the recipe learns from one that is given; what the recipe learns from must fit.

    Args:
        teacher: as given.
        recipe: says what it learns from.
        model: that is pruned.
        inner: the same without wrappers.
        data: training examples.
        task: how the network is fed a batch.

    Raises:
        InputError, ModelError: if a teacher is missing, or is not what the recipe can learn from.
    """
    part = recipe.teacher
    if teacher is None:
        if part is not None and part.of == "given":
            raise InputError(
                "the recipe's teacher is 'of: given', but none is given: give prune() teacher=a network, "
                "or take 'of: before'"
            )
    elif part is None or part.of != "given":
        raise InputError("a teacher is given, but the recipe learns from none: set its teacher's 'of: given'")
    elif not isinstance(teacher, nn.Module):
        raise InputError(f"the teacher must be a torch.nn.Module, not {shown(teacher)}")
    elif unwrap(teacher) is inner:
        raise InputError(
            "the teacher is the network that is pruned: take 'of: before', or give copy.deepcopy(model)"
        )
    if part is not None and data is not None:
        batch = two_examples(model, data)
        part.check_teacher(inner, inner if teacher is None else teacher, batch, task)
    return teacher
