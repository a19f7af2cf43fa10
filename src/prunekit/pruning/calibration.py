"""The examples that a pruning looks at, tried on the network first, and the errors measured on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from prunekit.batches import Batch, Batches, Inputs, TensorBatches, feed, read_batch, shaped
from prunekit.distributed import count_processes, on_processes, refuse_together, sum_over_processes
from prunekit.errors import DataError, InputError, ModelError, PrunekitError, explaining, naming, said
from prunekit.masks import Masks
from prunekit.modes import Snapshot, evaluating, keeping_modes
from prunekit.parts.granularity import Elements
from prunekit.parts.stopping import Stop
from prunekit.recipe import Recipe
from prunekit.seeds import derive, keeping_generators
from prunekit.statistics.collect import average
from prunekit.targets import device_of
from prunekit.task import PLAIN, LossFunction, Task
from prunekit.training import Loop, Training, copy_state

BATCH = 256
"""Examples per batch of a calibration pass; a bound on memory, results do not depend on it."""

FEW = 32
"""Examples that a network is tried on."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The same sample of the training data in every step, on the network's device.

    Attributes:
        model: the network, without wrappers.
        elements: what is removed from it.
        data: training examples, if any are given.
        validation: on which the error is measured that a `stop` looks at; the sample, by default.
        examples: how many of the training data.
        seed: of the sample.
        task: how the network is fed a batch, and what its loss is.
        norms: those whose running statistics are measured anew.
        loop: what of the trainings' loop is the user's own.
    """

    model: nn.Module
    elements: Elements
    data: Batches | None
    validation: Batches | None
    examples: int
    seed: int
    task: Task
    norms: Sequence[_NormBase]
    loop: Loop | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is now."""
        return self.model.get_parameter(next(iter(self.elements.parameters))).device

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
        wrong = None
        try:
            self._check(recipe, retraining)
        except PrunekitError as error:
            wrong = error
        refuse_together(wrong, self.device)

    def _check(self, recipe: Recipe, retraining: bool) -> None:
        data, training = self.data, recipe.retrain.plan if retraining else None
        task = self.task

        def stopping(outputs: Any, targets: Any) -> Tensor:
            return recipe.stop.error(outputs, targets, task)

        def with_parts(own: Task) -> LossFunction:
            def loss(outputs: Any, targets: Any) -> Tensor:
                for part in recipe.parts.values():
                    part.check_batch(outputs, targets, own)
                return own.loss(outputs, targets)

            return loss

        uses: list[Use] = []
        measured: list[Use] = []
        if recipe.needs_data or self.norms:
            judged = any(need.needs_loss or need.takes_loss for need in recipe.needs)
            with_loss = recipe.allocation.needs_data or judged
            uses.append(Use(task, BATCH, task.loss if with_loss else None))
        if data is not None and training is not None and training.length(data) > recipe.retrain.start:
            uses.append(self._of_training(training, with_parts))
        for each in recipe.warm_ups.values() if retraining else ():
            if data is not None and each.length(data):
                uses.append(self._of_training(each, lambda own: own.loss))
        for each in recipe.quantize.plans if retraining else ():
            if data is not None and each.length(data):
                uses.append(self._of_training(each, with_parts))
        if recipe.stop.needs_data:
            (uses if self.validation is None else measured).append(Use(task, BATCH, stopping))
        if data is not None:
            check_examples(self.model, "the data", data, uses)
        if self.validation is not None:
            check_examples(self.model, "the validation data", self.validation, measured)

    def _of_training(self, training: Training, loss: Callable[[Task], LossFunction]) -> Use:
        own = training.task_of(self.task)
        return Use(own, training.batch_size, loss(own), True, training.changes(self.loop))

    def recalibrate(self) -> None:
        """Measure the running statistics of the norms anew, on the sample."""
        recalibrate(self.model, self.norms, self.batches(), self.task)

    def batches(self, draw: int = 0) -> Iterator[Batch]:
        """The sample; nothing without data.

        Args:
            draw: 0 for the one of every step, another number for another sample.
        """
        if self.data is None:
            return iter(())
        seed = derive(self.seed, "calibration", *([draw] if draw else []))
        return self._placed(self.data.sample(self.examples, BATCH, seed))

    def watched(self, wrong: list[DataError], draw: int = 0) -> Iterator[Batch]:
        """The same, for statistics without a loss in which NaN would be seen.

        Args:
            wrong: to it is added what is to be said of batches whose targets are NaN or infinite, or whose
                inputs are, and the network's outputs as well; statistics that look for it say more, and not
                before all processes have added up theirs.
            draw: as of `batches`.
        """
        for number, batch in enumerate(self.batches(draw)):
            try:
                check_finite(self.model, f"batch {number} of the calibration data", batch, self.task)
            except DataError as error:
                wrong.append(error)
            yield batch

    def error(self, stop: Stop, *, recalibrated: bool = False) -> float:
        """What a rule measures of the network as it is, or as it would be with its norms' statistics anew."""
        with looking_only(self.model, train=False):
            if recalibrated:
                self.recalibrate()
            return average(
                self.model,
                self.batches()
                if self.validation is None
                else self._placed(self.validation.epoch(0, BATCH, 0)),
                lambda outputs, targets: stop.error(outputs, targets, self.task),
                self.task,
                self.device,
                lambda outputs, targets: stop.terms(outputs, targets, self.task),
            )

    @contextmanager
    def masked(self, kept: Masks) -> Iterator[None]:
        """The network with only this kept inside; the weights are put back afterwards."""
        masks = self.elements.masks(kept)
        with torch.no_grad():
            saved = [(parameter, parameter.detach().clone()) for parameter, _ in masks.parameters(self.model)]
            try:
                masks.apply(self.model)
                yield
            finally:
                for parameter, values in saved:
                    parameter.copy_(values)

    @torch.no_grad()
    def mean_loss(self) -> float:
        """The loss on the sample of the network as it is."""
        return average(self.model, self.batches(), self.task.loss, self.task, self.device)

    def loss_with(self, kept: Masks) -> float:
        """The loss on the sample if only this were kept.

        Raises:
            DataError: where it is not finite.
        """
        with self.masked(kept):
            mean = self.mean_loss()
        if not math.isfinite(mean):
            raise DataError(f"the loss on the calibration data is {mean}: layers cannot be compared by it")
        return mean

    def _placed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        device = self.device
        return (batch.to(device) for batch in batches)


def norms_with_statistics(model: nn.Module) -> list[_NormBase]:
    """The norms of a network that keep running statistics."""
    return [each for each in model.modules() if isinstance(each, _NormBase) and each.running_mean is not None]


@torch.no_grad()
def recalibrate(
    model: nn.Module, norms: Sequence[_NormBase], batches: Iterable[Batch], task: Task = PLAIN
) -> None:
    """Put the running statistics of norms to their means over batches, of all processes.

    The rest of the network runs in evaluation mode, each norm by the statistics of its batch, as in training.
    A removal shifts what a norm is given; with the statistics of the unpruned network even a good choice of
    units looks like a bad one (Li et al. 2020, EagleEye, arXiv 2007.02491). A batch of less than half of the
    largest so far is left out: its statistics are too rough. A norm that does not run keeps what it has.

    Raises:
        DataError: if a norm has nothing to take statistics over, or they are not finite.
    """
    if not norms:
        return
    calls, wrong = _measure_norms(model, norms, batches, task)
    device = device_of(model)
    with naming("recalibrate"):
        refuse_together(wrong, device)
        totals = torch.tensor(calls, dtype=torch.float64, device=device)
        sum_over_processes([totals])
        for norm, here, total in zip(norms, calls, totals.tolist(), strict=True):
            if total:
                _share(norm, here, total)


def _measure_norms(
    model: nn.Module, norms: Sequence[_NormBase], batches: Iterable[Batch], task: Task
) -> tuple[list[int], DataError | None]:
    """How often each norm ran, with the mean of all its calls in it then; and why it cannot be done."""
    before = [(copy_state(norm), norm.momentum) for norm in norms]
    calls = dict.fromkeys(norms, 0)

    def count(norm: Any, _: Any) -> None:
        calls[norm] += 1
        norm.momentum = 1 / calls[norm]  # the plain mean over calls

    wrong = None
    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.training = True
            largest = 0
            for batch in map(read_batch, batches):
                largest = max(largest, len(batch))
                if 2 * len(batch) >= largest:
                    task.run(model, batch)
        except ValueError as error:
            if largest > 1:
                raise
            wrong = DataError(
                f"norms cannot be measured on batches of a single example ({said(error)}): give "
                "larger ones, or set 'recalibrate' to false"
            )
        finally:
            for hook in hooks:
                hook.remove()
            for norm, (_, momentum) in zip(norms, before, strict=True):
                norm.momentum = momentum
    for norm, (state, _) in zip(norms, before, strict=True):
        if not calls[norm]:
            norm.load_state_dict(state)
    return list(calls.values()), wrong


def _share(norm: _NormBase, here: int, total: float) -> None:
    """Make the means over this process's calls those over the calls of all."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    own = [norm.running_mean, norm.running_var]
    if not here:
        norm.reset_running_stats()
    for each in own:
        each.mul_(here)
    sum_over_processes([*own, norm.num_batches_tracked])
    for each in own:
        each.div_(total)
    if not all(bool(each.isfinite().all()) for each in own):
        raise DataError(
            "the statistics of a norm are not finite on the calibration data: it has values "
            "that are NaN, infinite or too large"
        )


def two_examples(model: nn.Module, data: Batches) -> Batch:
    """Two examples that a network can be run on, on its device.

    Raises:
        DataError: if there are none, on one of the processes.
    """
    device = device_of(model)
    batch = data.first(2)
    without, processes = count_processes(batch is None, device)
    if batch is None or without:
        where = on_processes(without, processes)
        raise DataError(f"the data is empty{where}: there is no example to run the network on")
    return batch.examples(0, 2).to(device)


# ---- a network tried on examples before anything long begins -------------------------------------------


def check_takes(model: nn.Module, name: str, inputs: Inputs) -> None:
    """Run the network once, in evaluation mode; it is left as it was.

    Args:
        model: the network.
        name: what the person calls it.
        inputs: a few examples.

    Raises:
        ModelError: if it fails on them, with what it says.
    """

    def complaint() -> str:
        return f"the model {name} cannot take examples of {shaped(inputs)}"

    with evaluating(model), torch.inference_mode(), explaining(ModelError, complaint):
        feed(model, inputs)


@dataclass(frozen=True)
class Use:
    """What examples are there for.

    Attributes:
        task: how the network is fed, and what its loss is.
        count: how many examples the network is given at a time.
        loss: (outputs, targets) -> a scalar; None if no loss is asked of them.
        train: whether they train it: in training mode then, and all of them.
        augment: what a training makes of a batch.
    """

    task: Task
    count: int
    loss: LossFunction | None
    train: bool = False
    augment: Callable[[Batch], Batch] | None = None


def check_examples(model: nn.Module, name: str, data: Batches, uses: Sequence[Use]) -> None:
    """Run a network on a few examples, with their loss; it is left as it was, and so are all generators.

    Args:
        model: the network, without wrappers.
        name: what the examples are, such as "the validation data".
        data: the examples.
        uses: what they are there for.

    Raises:
        ModelError: if the network fails on the inputs, with what it says.
        InputError: if the loss cannot be taken of its outputs and the targets.
        DataError: if there are no examples, or values that are to train it are NaN or infinite.
    """
    if not uses:
        return
    few = data.first(min(FEW, *(use.count for use in uses)))
    if few is None:
        if any(use.train for use in uses):
            raise DataError(f"{name}: there are no examples")
        return  # one of several processes may be without any: the pass over the data says so for all
    for use in uses:
        outputs = _tried_few(model, name, data, few, use)
        if use.train and data.smallest(use.count) == 1:  # too small for some layers
            _tried(model, name, few.examples(0, 1), use)
        if isinstance(data, TensorBatches):
            _check_all(name, data, use, outputs)
    for use in uses:
        if use.train:  # where a network is only looked at, it is seen in what comes out
            check_finite(model, name, data.all if isinstance(data, TensorBatches) else few, use.task)
            break


def _tried_few(model: nn.Module, name: str, data: Batches, few: Batch, use: Use) -> Any:
    try:
        return _tried(model, name, few, use)
    except (ModelError, InputError):
        if not isinstance(data, TensorBatches) or not len(few) < min(use.count, len(data.all)):
            raise
        # it may want just so many at a time
        return _tried(model, name, data.first(use.count), use)


def _check_all(name: str, data: TensorBatches, use: Use, outputs: Any) -> None:
    if use.loss is not None:
        wrong = use.task.out_of_range(outputs, data.all.targets)
        if wrong is not None:
            raise InputError(f"{name}: {wrong}")


@contextmanager
def looking_only(model: nn.Module, *, train: bool) -> Iterator[None]:
    """A network may be run inside: its buffers, modes and torch's generators are put back afterwards."""
    buffers = Snapshot(model, parameters=False)
    with keeping_modes(model), keeping_generators(), torch.no_grad():
        model.train(train)
        try:
            yield
        finally:
            buffers.restore()


def _tried(model: nn.Module, name: str, batch: Batch, use: Use) -> Any:
    device = device_of(model)
    batch = batch.to(device)
    mode = f" in training with batch_size = {use.count}" if use.train else ""

    def complaint() -> str:
        hint = _hint(model, batch.inputs, use.task)
        return f"the network cannot take {name}{mode}, {batch.described}{hint}"

    with looking_only(model, train=use.train):
        if use.augment is not None:
            with naming(name):
                batch = use.augment(batch)
        with explaining(ModelError, complaint):
            outputs = use.task.run(model, batch)
        if use.loss is None:
            return outputs
        try:
            value = use.loss(outputs, batch.targets)
        except PrunekitError as error:
            raise type(error)(f"{name}: {error}") from None
        except Exception as error:
            raise InputError(
                f"{name}: no loss can be taken of the network's outputs and targets of "
                f"{shaped(batch.targets, types=True)}: {said(error)}"
            ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"{name}: the loss must be one number in a tensor, the mean over a batch, not {shape}"
        )
    return outputs


def check_names(model: nn.Module, name: str, batch: Batch, task: Task) -> None:
    """Refuse named inputs that the network has no argument for.

    Raises:
        ModelError: naming the first one, and the arguments that there are.
    """
    unknown = task.unknown_argument(model, batch.inputs)
    if unknown is not None:
        raise ModelError(f"the network cannot take {name}, {batch.described}: {unknown}")


def _hint(model: nn.Module, inputs: Any, task: Task) -> str:
    """What is most often wrong with inputs."""
    unknown = task.unknown_argument(model, inputs)
    if unknown is not None:
        return f" ({unknown})"
    first = next(model.parameters(), None)
    if first is None or not isinstance(inputs, Tensor) or inputs.dtype == first.dtype:
        return ""
    return f" (the network's parameters are {first.dtype})"


def check_finite(model: nn.Module, name: str, batch: Batch, task: Task) -> None:
    """Refuse examples that are no numbers; a network that makes numbers of NaN may have it as inputs.

    Raises:
        DataError: naming the first example.
    """
    wrong = _first_not_finite(batch.targets)
    if wrong is not None:
        raise DataError(f"{name}: the targets of example {wrong} are NaN or infinite")
    wrong = _first_not_finite(batch.inputs)
    if wrong is None:
        return
    with looking_only(model, train=False):
        outputs = task.run(model, batch.examples(wrong, wrong + 1).to(device_of(model)))
    if not isinstance(outputs, Tensor) or not bool(torch.isfinite(outputs).all()):
        raise DataError(f"{name}: the inputs of example {wrong} are NaN or infinite, and so are the outputs")


def _first_not_finite(values: Any) -> int | None:
    if not isinstance(values, Tensor):
        leaves = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.dim())
        return next((found for found in map(_first_not_finite, leaves) if found is not None), None)
    # one sum takes no memory and tells it in almost all cases
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):
        return None
    for start in range(0, len(values), 1024):
        finite = torch.isfinite(values[start : start + 1024]).flatten(1 if values.dim() > 1 else 0)
        each = finite.all(1) if values.dim() > 1 else finite
        if not bool(each.all()):
            return start + int((~each).nonzero()[0])
    return None
