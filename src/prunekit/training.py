"""The training loop that studies and retraining use."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from prunekit.batches import Batch, Batches, Inputs, as_batches
from prunekit.distributed import (
    failing_together,
    from_all_processes,
    from_process,
    processes,
    sum_over_processes,
    trained_as_one,
)
from prunekit.errors import DataError, InputError, ModelError, PrunekitError, explaining, shown
from prunekit.losses import NO_GRADIENT
from prunekit.masked_optimizer import MaskedOptimizer
from prunekit.masks import Masks
from prunekit.modes import keeping_modes
from prunekit.parts.augment import Augment, augmented
from prunekit.parts.base import BatchLoss
from prunekit.parts.regularize import Regularizer, StepHooks, check_gradients_are_there, needs_closure
from prunekit.seeds import derive, seeded
from prunekit.settings import EPOCHS, LARGE, WHOLE, Settings, checked_seed, whole
from prunekit.targets import device_of, uncompiled, unwrap
from prunekit.task import PLAIN, Task

__all__ = ["Loop", "Trained", "Training", "TrainingError", "train"]

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
        augment: how the inputs of every batch are changed at random, one after the other; see
            `prunekit.parts.augment`.
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
    augment: tuple[Annotated[SerializeAsAny[Augment], BeforeValidator(augmented)], ...] = ()

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError("give either 'epochs' or 'iterations', not both")
        return self

    @property
    def without_steps(self) -> bool:
        """Whether it takes no step, on whatever data."""
        return self.epochs == 0 or self.iterations == 0

    def length(self, data: Batches, together: int = 1) -> int:
        """The number of optimizer steps on this data, each of so many batches; by default 10 epochs.

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
        return round(epochs * batches / together)

    def changes(self, loop: Loop | None = None) -> Callable[[Batch], Batch] | None:
        """What the augmentations make of a batch; None without any."""
        each: list[Callable[[Any], Any]] = list(self.augment)
        if loop is not None and loop.augment is not None:
            each.append(loop.augment)
        if not each:
            return None

        def changed(batch: Batch) -> Batch:
            inputs = batch.inputs
            for one in each:
                inputs = one(inputs)
            return replace(batch, inputs=inputs)

        return changed

    def with_regularizer(self, regularizer: Regularizer) -> Training:
        """The same training with one more that acts in it."""
        return self.model_copy(update={"regularize": (*self.regularize, regularizer)})

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
class Loop:
    """What of a training loop is the user's own: PyTorch's objects, made anew for each training.

    Attributes:
        optimizer: from the parameters that are trained to their optimizer, in place of the settings' one. One
            that needs a closure, such as LBFGS, is given it; one with modes, such as schedule-free ones, is
            put into evaluation mode at the end.
        scheduler: (optimizer, steps in all) -> a learning-rate scheduler, stepped after each step of the
            optimizer; in place of `decay`.
        clip: the total norm that gradients are clipped to before a step.
        accumulate: the batches of one step; each counts by the terms of its loss.
        precision: the type that autocast computes in; with float16 the loss is scaled (`GradScaler`).
        augment: a random change of the inputs of every batch, as a batch has them; it acts behind those of
            the settings.
        average: from the network to a `torch.optim.swa_utils.AveragedModel` of it, which is updated after
            each step; its parameters are the network's at the end.
        relative_lr: from the full name of a parameter to the factor by which it learns faster than the
            settings say, such as 10 for new layers; with the settings' own optimizer.
    """

    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None
    clip: float | None = None
    accumulate: int = 1
    precision: torch.dtype | None = None
    augment: Callable[[Any], Any] | None = None
    average: Callable[[nn.Module], AveragedModel] | None = None
    relative_lr: Callable[[str], float] | None = None

    def __post_init__(self) -> None:
        for name in ("optimizer", "scheduler", "average", "augment", "relative_lr"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise InputError(f"loop: {name} must be a function, not {shown(value)}")
        if self.optimizer is not None and self.relative_lr is not None:
            raise InputError("loop: relative_lr is for the settings' own optimizer: leave it or `optimizer`")
        whole("accumulate", self.accumulate, 1, WHOLE)
        if self.clip is not None and not (isinstance(self.clip, int | float) and 0 < self.clip < math.inf):
            raise InputError(f"loop: clip must be a number above 0, not {shown(self.clip)}")
        if self.precision not in (None, torch.float16, torch.bfloat16):
            raise InputError(f"loop: precision must be float16 or bfloat16, not {shown(self.precision)}")

    @property
    def interrupts(self) -> bool:
        """Whether a training by it may be one of several parts: what it carries on is not known."""
        return self.optimizer is None and self.scheduler is None and self.average is None


@dataclass(frozen=True)
class Trained:
    """What a training run did: its optimizer steps, and the mean loss of the batches of its last epoch."""

    iterations: int
    loss: float


@dataclass(frozen=True)
class TrainingPart:
    """One of several parts of equal length that make up one training: one optimizer, one order of the data.

    The learning rate falls over all parts together. The last part may be longer.

    Attributes:
        number: of the part, from 0.
        parts: how many there are.
        state: what the optimizer carries over from part to part, from `initial_optimizer_state`; changed in
            place.
        rest: the share of the whole training by which the last part is longer than the others.
    """

    number: int
    parts: int
    state: Mapping[str, Tensor]
    rest: float = 0.0

    def span(self, length: int) -> tuple[int, int, int]:
        """The first optimizer step, the one after the last, and their number in all parts.

        Args:
            length: of a part.
        """
        total = round(self.parts * length / (1 - self.rest))
        first = self.number * length
        return first, total if self.number == self.parts - 1 else first + length, total

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

    def keep(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None) -> None:
        """Take the state from the optimizer; what it has of removed weights is none of what comes back."""
        for name, parameter in _trainable(model):
            for key, value in optimizer.state[parameter].items():
                if value is not None:
                    own = self.state[f"{name}/{key}"].copy_(value)
                    if masks is not None and name in masks and own.shape == masks[name].shape:
                        own.masked_fill_(~masks[name].to(own.device), 0)


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


def check_loop(loop: Loop) -> None:
    """Refuse, with an `InputError`, what is no `Loop`."""
    if not isinstance(loop, Loop):
        raise InputError(f"loop must be a prunekit.Loop, not {shown(loop)}")


@failing_together()
@torch.inference_mode(False)  # gradients are computed whatever the caller is in
@torch.enable_grad()
def train(
    model: nn.Module,
    data: Any,
    training: Training | Mapping[str, Any],
    *,
    task: Task | None = None,
    loop: Loop | None = None,
    seed: int = 0,
    masks: Masks | None = None,
    loss: BatchLoss | None = None,
    before_step: Callable[[], None] | None = None,
    attach: Callable[[nn.Module, Optimizer], list[Any]] | None = None,
    start: int = 0,
    part: TrainingPart | None = None,
    checkpoints: Collection[int] = (),
    on_checkpoint: Callable[[int, State], object] | None = None,
    report: Report | None = None,
) -> Trained:
    """Train a model in place.

    Everything random in it, dropout included, comes from `seed`; torch's global generators are put back
    afterwards. Batches are moved to where the model is.

    Several processes train one network in DistributedDataParallel: each gives its part of the data, such as
    `prunekit.distributed.shard(data)`, in as many batches. A batch's loss is the mean over the terms of all
    processes, as if one had seen them together; norms of batches see those of their own process. Buffers are
    those of the first process at the end.

    Args:
        data: training examples: `(inputs, targets)` in memory, a dataset, or a loader of batches of any kind;
            see `prunekit.batches.as_batches`.
        training: its settings, or a mapping of them.
        task: how the network is fed a batch, and the loss that is minimised where `training` says `auto`.
        loop: what of the loop is the user's own: optimizer, scheduler, clipping, and so on.
        masks: what stays removed; applied after every step.
        loss: what is minimised instead of the loss of `training`, from the batch and that loss.
        before_step: called before each step of the optimizer, when the gradients are those of the loss alone.
        attach: called once with network and optimizer, to act at its steps behind all but the masks; the
            handles that it returns are removed at the end.
        start: the first step's number; a run that is rewound to step k trains from k to the end.
        part: which part of a longer training this is; all of it by default.
        checkpoints: numbers of steps after which `on_checkpoint` gets a copy of the state; 0 is before any.
        report: told after every epoch how far the run is.

    Raises:
        InputError: if `seed` or `start` is no whole number within its range, or the loop's own optimizer
            would have to go on with a training that was interrupted.
        TrainingError: if the loss of an epoch, or a weight at the end, is not finite; the model is then in
            the state that gave it.
        ModelError: if all parameters are frozen.
        DataError: if an epoch of the data has no batch.
    """
    seed, start = checked_seed(seed), whole("start", start, 0, WHOLE)
    training = Training.parse(training)
    loop = Loop() if loop is None else loop
    check_loop(loop)
    task = training.task_of(task or PLAIN)
    data = as_batches(data, partial(task.read, model=model))
    total = training.length(data, loop.accumulate)
    together = trained_as_one(uncompiled(model))
    if together:
        _check_equal_steps(total, device_of(model))
    per_epoch = -(-(data.length(training.batch_size) or total * loop.accumulate) // loop.accumulate)
    end, first = total, 0
    if part is not None and not loop.interrupts:
        raise InputError("loop: a training in parts goes on with the settings' own optimizer and decay")
    for regularizer in training.regularize:
        if part is not None and not regularizer.interruptible:
            raise InputError(f"{regularizer.name}: acts in one training, which steps must not interrupt")
    if part is None:
        acting = tuple(each.of_length(max(total - start, 0)) for each in training.regularize)
        training = training.model_copy(update={"regularize": acting})
    optimizer = make_optimizer(model, training, loop)
    few = data.first(2) if any(each.by_example for each in training.regularize) else None
    example = None if few is None else few.to(device_of(model)).inputs
    noise = derive(seed, "noise")
    if part is not None:
        first, end, total = part.span(total)
        start = first
        noise = derive(seed, "noise", part.number)
        part.resume(model, optimizer)
    wanted = set(checkpoints)

    def checkpoint(step: int) -> None:
        if on_checkpoint is not None and step in wanted:
            on_checkpoint(step, copy_state(model))

    losses: list[Tensor] = []
    mean = math.nan
    hooks = _attached(model, optimizer, training, masks, before_step, attach, loop, example)
    with seeded(noise), hooks:
        checkpoint(start)
        model.train()
        stepping = _Stepping(model, optimizer, task, loop, total, loss, training.changes(loop), together)
        for step, batches in _stream(data, training.batch_size, seed, start, end, loop.accumulate):
            if training.decay != "constant" and loop.scheduler is None and loop.optimizer is None:
                _set_lr(optimizer, training.lr * _decay(training.decay, step / total))
            loss_now = stepping.step(batches)
            if loss_now is not None:
                losses.append(loss_now)
            checkpoint(step + 1)
            if (step + 1) % per_epoch == 0 or step + 1 == end:
                if not losses:
                    raise DataError(
                        f"all targets of the epoch up to step {step + 1} are ignored: they train nothing"
                    )
                mean = float(torch.stack(losses).mean())
                if not math.isfinite(mean):
                    raise TrainingError(f"the loss is {mean} at step {step + 1}: lower the learning rate")
                losses = []
                if report is not None:
                    report(step + 1 - first, end - first)
        stepping.finish()
        if together:  # statistics of norms, which the first process's next call would send to the others
            from_process(list(model.buffers()), 0)
        if end > start and not _are_finite(model):  # the last step may be the one that was too long
            raise TrainingError(f"weights are not finite after step {end}: lower the learning rate")
    if masks is not None and loop.average is not None:
        masks.apply(model)
    if part is not None:
        part.keep(model, optimizer, masks)
    return Trained(max(end - start, 0), mean)


_CANNOT = "the network cannot be trained on a batch of {}"
_NO_SCHEDULER = (
    "loop: the scheduler cannot be made for an optimizer of {} groups of parameters (those of the loop, and "
    "behind them the gates of a regularizer)"
)


class _Stepping:
    """The steps of one training: batches in, the loss before the step out."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        task: Task,
        loop: Loop,
        steps: int,
        batch_loss: BatchLoss | None,
        augment: Callable[[Batch], Batch] | None,
        together: bool,
    ) -> None:
        self._together = together
        self._model, self._optimizer, self._task, self._loop = model, optimizer, task, loop
        self._batch_loss, self._augment, self._device = batch_loss, augment, device_of(model)
        kind = self._device.type
        self._scheduler = None
        if loop.scheduler is not None:
            groups = len(optimizer.param_groups)
            with explaining(InputError, lambda: _NO_SCHEDULER.format(groups)):
                self._scheduler = loop.scheduler(optimizer, steps)
        self._average = None
        if loop.average is not None:
            with explaining(InputError, lambda: "loop: the average cannot be made"):
                self._average = loop.average(model)
        self._scaler = torch.amp.GradScaler(kind) if loop.precision is torch.float16 else None
        self._autocast: Callable[[], Any] = nullcontext
        if loop.precision is not None:
            self._autocast = partial(torch.autocast, kind, dtype=loop.precision)
        self._closure = needs_closure(optimizer)
        if hasattr(optimizer, "train"):  # schedule-free ones train at other weights than they give
            optimizer.train()

    def step(self, batches: Sequence[Batch]) -> Tensor | None:
        """One step of the optimizer: the loss before it; None where all targets are ignored."""
        batches = [self._changed(batch) for batch in batches]  # once, however often a closure asks for them
        if self._closure:
            loss = torch.as_tensor(self._optimizer.step(lambda: self._backward(batches)))  # type: ignore
        else:
            loss = self._backward(batches)
            if self._counted and self._scaler is not None:
                self._scaler.step(self._optimizer)
                self._scaler.update()
            elif self._counted:
                self._optimizer.step()
        if self._scheduler is not None:
            with explaining(InputError, lambda: "loop: the scheduler cannot take a step"):
                self._scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self._model)
        return loss.detach() if self._counted else None

    def finish(self) -> None:
        """Leave the network with the weights that it is used with."""
        if hasattr(self._optimizer, "eval"):
            self._optimizer.eval()
        if self._average is not None:
            averaged = dict(unwrap(self._average.module).named_parameters())
            with torch.no_grad():
                for name, parameter in unwrap(self._model).named_parameters():
                    parameter.copy_(averaged[name])

    def _backward(self, batches: Sequence[Batch]) -> Tensor:
        """The gradients of the mean loss, and that loss; of all processes that train one network."""
        self._optimizer.zero_grad()
        if len(batches) == 1 and not self._together:
            loss, count = self._loss(batches[0], counted=False)
            if count:
                self._scaled(loss).backward()  # type: ignore[no-untyped-call]
        else:
            total, count = torch.zeros((), device=self._device), 0.0
            for batch in batches:
                mean, terms = self._loss(batch, counted=True)
                if terms:
                    self._scaled(mean * terms).backward()  # type: ignore[no-untyped-call]
                    total, count = total + mean.detach() * terms, count + terms
                elif self._together:  # the others wait for gradients of every batch
                    torch.stack([each.sum() for each in self._trained]).sum().mul(0.0).backward()  # type: ignore
            shares = 1
            if self._together:  # gradients are means over the processes, whatever the terms of each
                shares = processes()
                sums = torch.stack([total.double(), total.new_tensor(count, dtype=torch.float64)])
                sum_over_processes([sums])
                total, count = sums[0], float(sums[1])
            self._divide(count / shares)
            loss = total / (count or 1.0)
        self._counted = bool(count)
        if self._counted and self._loop.clip is not None:
            if self._scaler is not None:
                self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._loop.clip)
        return loss

    def _loss(self, batch: Batch, *, counted: bool) -> tuple[Tensor, float]:
        task = self._task
        with self._autocast(), explaining(ModelError, lambda: _CANNOT.format(batch.described)):
            outputs = task.run(self._model, batch)
            loss = task.loss(outputs, batch.targets)
            if self._batch_loss is not None:
                loss = self._batch_loss(batch, outputs, batch.targets, loss)
        if not loss.requires_grad:
            raise InputError(NO_GRADIENT)
        if counted:
            return loss, task.terms(outputs, batch.targets)
        # a mean of nothing, as where all targets are ignored
        if bool(loss.isnan()) and not task.terms(outputs, batch.targets):
            return loss.new_zeros(()), 0.0
        return loss, 1.0

    def _changed(self, batch: Batch) -> Batch:
        """The batch where the network is, with the inputs that it is trained on."""
        batch = batch.to(self._device)
        with explaining(ModelError, lambda: _CANNOT.format(batch.described)):
            return batch if self._augment is None else self._augment(batch)

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self._scaler is None else self._scaler.scale(loss)

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [each for each in self._model.parameters() if each.requires_grad]

    def _divide(self, count: float) -> None:
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad /= count or 1.0  # class weights may add up to less than one


def _check_equal_steps(steps: int, device: torch.device) -> None:
    """Refuse a training in which one process would wait for gradients that no other has left to give."""
    found = from_all_processes(steps, device)
    if len(set(found)) > 1:
        raise DataError(
            f"the processes' parts of the data make {', '.join(map(str, found))} steps of the training: give "
            "each as many batches, or the same data to all and prunekit.distributed.shard divides it"
        )


def _are_finite(model: nn.Module) -> bool:
    parameters = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    # one sum takes no memory; that of large numbers may be infinite though they are not
    return all(bool(each.sum().isfinite()) or bool(each.isfinite().all()) for each in parameters)


def _stream(
    data: Batches, batch_size: int, seed: int, start: int, end: int, together: int
) -> Iterator[tuple[int, list[Batch]]]:
    """The numbers of steps from `start` on, with so many batches each."""
    group: list[Batch] = []
    for number, batch in _numbered(data, batch_size, seed, start * together, end * together):
        group.append(batch)
        if len(group) == together:
            yield number // together, group
            group = []


def _numbered(
    data: Batches, batch_size: int, seed: int, start: int, total: int
) -> Iterator[tuple[int, Batch]]:
    """Numbered batches from `start` on; the order of an epoch does not depend on where a run began."""
    per_epoch = data.length(batch_size)
    step = start
    epoch, skip = 0, start
    while step < total:
        if per_epoch is not None:
            epoch, skip = divmod(step, per_epoch)
        passed = 0 if per_epoch is None else skip  # of a stream it must be seen how many there are
        began, seen = step, 0
        for seen, batch in enumerate(data.epoch(epoch, batch_size, seed, passed), passed + 1):
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
    attach: Callable[[nn.Module, Optimizer], list[Any]] | None,
    loop: Loop,
    example: Inputs | None,
) -> Iterator[None]:
    handles: list[Any] = []
    try:
        if before_step is not None:  # before penalties add to the gradients
            check_gradients_are_there("a part of the recipe", optimizer)
            handles.append(StepHooks(optimizer, before=lambda *_: before_step()))
        # gates come last, which change what the others would find
        for regularizer in sorted(training.regularize, key=lambda each: not each.interruptible):
            known = {"example_inputs": example} if regularizer.by_example else {}
            handles += regularizer.attach(model, optimizer, masks, **known)
        if attach is not None:
            handles += attach(model, optimizer)
        # masks that keep everything have nothing to do, and gates stand where they would act
        gated = any(not each.interruptible for each in training.regularize)
        if masks is not None and not (gated and masks.kept == masks.total):
            alone = type(optimizer) in (SGD, Adam, AdamW) and loop.clip is None
            handles.append(MaskedOptimizer(model, optimizer, masks, gradients=not alone))
        with keeping_modes(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def make_optimizer(model: nn.Module, training: Training, loop: Loop | None = None) -> Optimizer:
    """The optimizer over all trainable parameters; fused, which is faster and gives the same steps.

    Raises:
        ModelError: if all parameters are frozen.
        InputError: if the loop's own makes something else.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("the model has no trainable parameters: all are frozen")
    if loop is not None and loop.optimizer is not None:
        with explaining(InputError, lambda: "loop: the optimizer cannot be made"):
            own = loop.optimizer(parameters)
        if not isinstance(own, Optimizer):
            raise InputError(f"loop: optimizer must make a torch.optim.Optimizer, not {type(own).__name__}")
        return own
    common: dict[str, Any] = {
        "lr": training.lr,
        "weight_decay": training.weight_decay,
        "fused": all(parameter.is_floating_point() for parameter in parameters),
    }
    groups: Any = parameters
    if loop is not None and loop.relative_lr is not None:
        groups = _by_rate(model, loop.relative_lr, training.lr)
    if training.optimizer == "sgd":
        return SGD(groups, momentum=training.momentum, **common)
    return (Adam if training.optimizer == "adam" else AdamW)(groups, **common)


def _by_rate(model: nn.Module, relative_lr: Callable[[str], float], lr: float) -> list[dict[str, Any]]:
    """Groups of parameters that have one learning rate each."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in _trainable(model):
        factor = relative_lr(name)
        if not (isinstance(factor, int | float) and 0 <= factor < math.inf):
            raise InputError(f"loop: relative_lr must give a number of at least 0, not {shown(factor)}")
        groups.setdefault(factor, []).append(parameter)
    return [{"params": each, "lr": lr * factor, "relative_lr": factor} for factor, each in groups.items()]


def copy_state(model: nn.Module) -> State:
    """A copy of the model's state dict that later training does not change."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _decay(kind: str, progress: float) -> float:
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


def _set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("relative_lr", 1.0)
