"""The training loop that studies and retraining use."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from prunekit.batches import Batch, Batches, as_batches
from prunekit.errors import DataError, InputError, ModelError, PrunekitError, shown
from prunekit.masks import MaskedOptimizer, Masks
from prunekit.modes import keeping_modes
from prunekit.parts.base import BatchLoss
from prunekit.parts.regularize import Regularizer
from prunekit.seeds import derive, seeded
from prunekit.settings import EPOCHS, LARGE, WHOLE, Settings, checked_seed, whole
from prunekit.targets import device_of, unwrap
from prunekit.task import Task

State = dict[str, Tensor]
"""A model's state dict, copied."""


class TrainingError(PrunekitError):
    """Training went wrong: the loss is not finite."""


class Training(Settings):
    """How a network is trained.

    Attributes:
        epochs: passes over the training data; a part of an epoch is allowed (0.5). Exclusive with iterations.
        iterations: optimizer steps, instead of epochs.
        loss: `auto` minimises the loss of the task: what `prune(loss=)` or `train(task=)` says, else the
            network's own loss, cross-entropy for class numbers or the squared error for real values.
        decay: how the learning rate falls: constant, cosine to zero, or by a tenth at 50 % and 75 %.
        regularize: what acts during training, see `prunekit.parts.regularize`.
    """

    epochs: float | None = Field(default=None, ge=0, le=EPOCHS)
    iterations: int | None = Field(default=None, ge=0, le=WHOLE)
    batch_size: int = Field(default=128, ge=1, le=WHOLE)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = Field(default=1e-3, gt=0, le=LARGE)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=LARGE)
    decay: Literal["constant", "cosine", "steps"] = "constant"
    loss: Literal["auto", "cross_entropy", "squared_error"] = "auto"
    regularize: tuple[Annotated[SerializeAsAny[Regularizer], BeforeValidator(Regularizer.build)], ...] = ()

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError("give either 'epochs' or 'iterations', not both")
        return self

    def length(self, data: Batches) -> int:
        """The number of optimizer steps on this data; 10 epochs when nothing is said.

        Raises:
            InputError: for epochs of data whose length nobody knows.
        """
        if self.iterations is not None:
            return self.iterations
        epochs = 10.0 if self.epochs is None else self.epochs
        batches = data.length(self.batch_size)
        if batches is None:
            raise InputError(
                "the data is a stream without a length, so an epoch has no end: give 'iterations', not "
                "epochs, or data with __len__"
            )
        return round(epochs * batches)

    def task_of(self, task: Task) -> Task:
        """The task whose loss is minimised: that which is given, or with the loss that is set here.

        Raises:
            InputError: if a loss is set here, but the task has a method of its own for it.
        """
        if self.loss == "auto":
            return task
        if type(task).loss is not Task.loss:
            raise InputError(
                f"the training's loss is {self.loss!r}, but {type(task).__name__} has a loss of its own: "
                "leave 'loss' at 'auto'"
            )
        own = copy.copy(task)
        own.own_loss = self.loss
        return own


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
    total = Training(epochs=epochs).epochs
    if total is None:
        raise InputError("epochs: a number is needed, not None")
    if "iterations" in given:
        return Training.parse(given)
    return Training.parse({"epochs": total / shares, **given})


def given_of(training: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is said of a training.

    Raises:
        InputError: if it is no mapping.
    """
    if training is not None and not isinstance(training, Mapping):
        raise InputError(f"training: a mapping of settings, or a Training, is needed, not {shown(training)}")
    return dict(training or {})


@dataclass(frozen=True)
class Trained:
    """What a training run did: its optimizer steps, and the mean loss of the batches of its last epoch."""

    iterations: int
    loss: float


@dataclass(frozen=True)
class TrainingPart:
    """One of several parts of equal length that make up one training: one optimizer, one order of the data.

    The learning rate falls over all parts together.

    Attributes:
        number: of the part, from 0.
        parts: how many there are.
        state: what the optimizer carries over from part to part, from `initial_optimizer_state`; changed in
            place.
    """

    number: int
    parts: int
    state: Mapping[str, Tensor]

    def resume(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Let the optimizer go on from the state.

        Raises:
            ModelError: naming a parameter that was frozen when the state was made.
        """
        for name, parameter in _trainable(model):
            for key in _carried(optimizer):
                if f"{name}/{key}" not in self.state:
                    raise ModelError(
                        f"the training cannot go on: {name} is trained now, but was frozen when it began"
                    )
            own = {key: self.state[f"{name}/{key}"].clone() for key in _carried(optimizer)}
            if own:
                optimizer.state[parameter] = own

    def keep(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take the state from the optimizer."""
        for name, parameter in _trainable(model):
            for key, value in optimizer.state[parameter].items():
                if value is not None:
                    self.state[f"{name}/{key}"].copy_(value)


def initial_optimizer_state(model: nn.Module, training: Training) -> State:
    """What an optimizer carries before its first step, by parameter and what it is called there."""
    optimizer = make_optimizer(model, training)
    return {
        f"{name}/{key}": parameter.new_zeros((), dtype=torch.float32)
        if key == "step"
        else torch.zeros_like(parameter.detach())
        for name, parameter in _trainable(model)
        for key in _carried(optimizer)
    }


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, each) for name, each in unwrap(model).named_parameters() if each.requires_grad)


def _carried(optimizer: Optimizer) -> tuple[str, ...]:
    """The tensors that an optimizer keeps for a parameter."""
    if isinstance(optimizer, SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return "step", "exp_avg", "exp_avg_sq"


Report = Callable[[int, int], None]
"""(optimizer steps done, steps in all): called once per epoch, for progress bars."""


def train(
    model: nn.Module,
    data: Any,
    training: Training,
    *,
    task: Task | None = None,
    seed: int = 0,
    masks: Masks | None = None,
    loss: BatchLoss | None = None,
    before_step: Callable[[], None] | None = None,
    start: int = 0,
    part: TrainingPart | None = None,
    checkpoints: Collection[int] = (),
    on_checkpoint: Callable[[int, State], object] | None = None,
    report: Report | None = None,
) -> Trained:
    """Train a model in place.

    Everything random in it, dropout included, comes from `seed`; torch's global generators are put back
    afterwards. Batches are moved to where the model is.

    Args:
        data: training examples: `(inputs, targets)` in memory, a dataset, or a loader of batches of any kind;
            see `prunekit.batches.as_batches`.
        task: how the network is fed a batch, and the loss that is minimised where `training` says `auto`.
        masks: what stays removed; applied after every step.
        loss: what is minimised instead of the loss of `training`, from the batch and that loss.
        before_step: called before each step of the optimizer, when the gradients are those of the loss alone.
        start: the first step's number; a run that is rewound to step k trains from k to the end.
        part: which part of a longer training this is; all of it by default.
        checkpoints: numbers of steps after which `on_checkpoint` gets a copy of the state; 0 is before any.
        report: told after every epoch how far the run is.

    Raises:
        InputError: if `seed` or `start` is no whole number within its range.
        TrainingError: if the loss of an epoch, or a weight at the end, is not finite; the model is then in
            the state that gave it.
        ModelError: if all parameters are frozen.
        DataError: if an epoch of the data has no batch.
    """
    seed, start = checked_seed(seed), whole("start", start, 0, WHOLE)
    task = training.task_of(task or Task())
    data = as_batches(data, partial(task.read, model=model))
    total = training.length(data)
    per_epoch = data.length(training.batch_size) or total
    end, first = total, 0
    optimizer = make_optimizer(model, training)
    noise = derive(seed, "noise")
    if part is not None:
        start = first = part.number * total
        end, total = start + total, part.parts * total
        noise = derive(seed, "noise", part.number)
        part.resume(model, optimizer)
    wanted = set(checkpoints)

    def checkpoint(step: int) -> None:
        if on_checkpoint is not None and step in wanted:
            on_checkpoint(step, copy_state(model))

    losses: list[Tensor] = []
    mean = math.nan
    with seeded(noise), _attached(model, optimizer, training, masks, before_step):
        checkpoint(start)
        model.train()
        for step, batch in _stream(data, training.batch_size, seed, start, end):
            if training.decay != "constant":
                _set_lr(optimizer, training.lr * _decay(training.decay, step / total))
            losses.append(_step(model, optimizer, task, batch, loss))
            checkpoint(step + 1)
            if (step + 1) % per_epoch == 0 or step + 1 == end:
                mean = float(torch.stack(losses).mean())
                if not math.isfinite(mean):
                    raise TrainingError(f"the loss is {mean} at step {step + 1}: lower the learning rate")
                losses = []
                if report is not None:
                    report(step + 1 - first, end - first)
        if end > start and not _are_finite(model):  # the last step may be the one that was too long
            raise TrainingError(f"weights are not finite after step {end}: lower the learning rate")
    if part is not None:
        part.keep(model, optimizer)
    return Trained(max(end - start, 0), mean)


def _step(
    model: nn.Module, optimizer: Optimizer, task: Task, batch: Batch, batch_loss: BatchLoss | None
) -> Tensor:
    """One step of the optimizer; the loss before it."""
    batch = batch.to(device_of(model))
    outputs = task.run(model, batch)
    loss = task.loss(outputs, batch.targets)
    if batch_loss is not None:
        loss = batch_loss(batch.inputs, outputs, batch.targets, loss)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _are_finite(model: nn.Module) -> bool:
    parameters = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    # one sum takes no memory; that of large numbers may be infinite though they are not
    return all(bool(each.sum().isfinite()) or bool(each.isfinite().all()) for each in parameters)


def _stream(data: Batches, batch_size: int, seed: int, start: int, total: int) -> Iterator[tuple[int, Batch]]:
    """Numbered batches from step `start` on; the order of an epoch does not depend on where a run began."""
    per_epoch = data.length(batch_size)
    step = start
    epoch, skip = 0, start
    while step < total:
        if per_epoch is not None:
            epoch, skip = divmod(step, per_epoch)
        began, seen = step, 0
        for seen, batch in enumerate(data.epoch(epoch, batch_size, seed), 1):
            if seen <= skip:
                continue
            if step >= total:
                return
            yield step, batch
            step += 1
        if per_epoch is None:  # a stream: it is over when it is over
            epoch, skip = epoch + 1, max(0, skip - seen)
            if seen:
                continue
            raise DataError(f"the stream of the data gave no batch in its {epoch}. pass")
        if step == began:  # a loader that promised more than it has would be asked for ever
            raise DataError(f"an epoch should have {per_epoch} batches, but none came after {skip}")


@contextmanager
def _attached(
    model: nn.Module,
    optimizer: Optimizer,
    training: Training,
    masks: Masks | None,
    before_step: Callable[[], None] | None,
) -> Iterator[None]:
    handles: list[Any] = []
    try:
        if before_step is not None:  # before penalties add to the gradients
            handles.append(optimizer.register_step_pre_hook(lambda *_: before_step()))
        for regularizer in training.regularize:
            handles += regularizer.attach(model, optimizer, masks)
        if masks is not None:
            alone = type(optimizer) in (SGD, Adam, AdamW)
            handles.append(MaskedOptimizer(model, optimizer, masks, gradients=not alone))
        with keeping_modes(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def make_optimizer(model: nn.Module, training: Training) -> Optimizer:
    """The optimizer over all trainable parameters; fused, which is faster and gives the same steps."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("the model has no trainable parameters: all are frozen")
    common: dict[str, Any] = {
        "lr": training.lr,
        "weight_decay": training.weight_decay,
        "fused": all(parameter.is_floating_point() for parameter in parameters),
    }
    if training.optimizer == "sgd":
        return SGD(parameters, momentum=training.momentum, **common)
    return (Adam if training.optimizer == "adam" else AdamW)(parameters, **common)


def copy_state(model: nn.Module) -> State:
    """A copy of the model's state dict that later training does not change."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _decay(kind: str, progress: float) -> float:
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


def _set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
