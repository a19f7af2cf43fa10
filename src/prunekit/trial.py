"""Whether a network takes the examples of a dataset, tried before anything long begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.batches import Batch, Batches, TensorBatches
from prunekit.errors import DataError, InputError, ModelError, PrunekitError, said
from prunekit.losses import Loss, out_of_range
from prunekit.measure.forward_pass import device_of
from prunekit.modes import Snapshot, evaluating, keeping_modes
from prunekit.seeds import keeping_generators

FEW = 32
"""Examples that a network is tried on."""


def check_takes(model: nn.Module, name: str, inputs: Tensor) -> None:
    """Run the network once, in evaluation mode; it is left as it was.

    Args:
        model: the network.
        name: what the person calls it.
        inputs: a few examples.

    Raises:
        ModelError: if it fails on them, with what it says.
    """
    try:
        with evaluating(model), torch.inference_mode():
            model(inputs)
    except PrunekitError:
        raise
    except Exception as error:  # the model may be the user's: whatever it raises is the user's to see
        shape = tuple(inputs.shape[1:])
        raise ModelError(
            f"the model {name} cannot take examples of the shape {shape}: {said(error)}"
        ) from error


@dataclass(frozen=True)
class Use:
    """What examples are there for.

    Attributes:
        loss: (outputs, targets) -> a scalar; None if no loss is asked of them.
        builtin: from targets to the key in `LOSSES` of that loss; None for another one.
        count: how many examples the network is given at a time.
        train: whether they train it: in training mode then, and all of them.
    """

    loss: Loss | None
    builtin: Callable[[Tensor], str] | None
    count: int
    train: bool = False


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
        if isinstance(data, TensorBatches):
            _check_all(model, name, data, use, outputs)
    if any(use.train for use in uses):  # where a network is only looked at, it is seen in what comes out
        whole = (data.inputs, data.targets) if isinstance(data, TensorBatches) else few
        check_finite(model, name, *whole)


def _tried_few(model: nn.Module, name: str, data: Batches, few: Batch, use: Use) -> Any:
    try:
        return _tried(model, name, few, use)
    except (ModelError, InputError):
        if not isinstance(data, TensorBatches) or not len(few[0]) < min(use.count, len(data.inputs)):
            raise
        # it may want just so many at a time
        return _tried(model, name, data.first(use.count), use)


def _check_all(model: nn.Module, name: str, data: TensorBatches, use: Use, outputs: Any) -> None:
    if use.train and len(data.inputs) % use.count == 1:  # the last batch: too small for some layers
        _tried(model, name, data.first(1), use)
    if use.builtin is not None and isinstance(outputs, Tensor) and outputs.dim() > 1:
        wrong = out_of_range(use.builtin(data.targets), data.targets, outputs.shape[1])
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
    inputs, targets = (part.to(device) for part in batch)
    with looking_only(model, train=use.train):
        try:
            outputs = model(inputs)
        except PrunekitError:
            raise
        except Exception as error:
            mode = f" in training with batch_size = {use.count}" if use.train else ""
            raise ModelError(
                f"the network cannot take {name}{mode}, {len(inputs)} inputs of the shape "
                f"{tuple(inputs.shape[1:])} and type {inputs.dtype}{_hint(model, inputs)}: {said(error)}"
            ) from error
        if use.loss is None:
            return outputs
        try:
            value = use.loss(outputs, targets)
        except PrunekitError as error:
            raise type(error)(f"{name}: {error}") from None
        except Exception as error:
            raise InputError(
                f"{name}: no loss can be taken of the network's outputs and targets of the shape "
                f"{tuple(targets.shape)} and type {targets.dtype}: {said(error)}"
            ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"{name}: the loss must be one number in a tensor, the mean over a batch, not {shape}"
        )
    return outputs


def _hint(model: nn.Module, inputs: Tensor) -> str:
    """What is most often wrong with the type of inputs."""
    first = next(model.parameters(), None)
    if first is None or inputs.dtype == first.dtype:
        return ""
    return f" (the network's parameters are {first.dtype})"


def check_finite(model: nn.Module, name: str, inputs: Tensor, targets: Tensor) -> None:
    """Refuse examples that are no numbers; a network that makes numbers of NaN may have it as inputs.

    Raises:
        DataError: naming the first example.
    """
    wrong = _first_not_finite(targets)
    if wrong is not None:
        raise DataError(f"{name}: the targets of example {wrong} are NaN or infinite")
    wrong = _first_not_finite(inputs)
    if wrong is None:
        return
    with looking_only(model, train=False):
        outputs = model(inputs[wrong : wrong + 1].to(device_of(model)))
    if not isinstance(outputs, Tensor) or not bool(torch.isfinite(outputs).all()):
        raise DataError(f"{name}: the inputs of example {wrong} are NaN or infinite, and so are the outputs")


def _first_not_finite(values: Tensor) -> int | None:
    # one sum takes no memory and tells it in almost all cases
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):
        return None
    for start in range(0, len(values), 1024):
        finite = torch.isfinite(values[start : start + 1024]).flatten(1 if values.dim() > 1 else 0)
        each = finite.all(1) if values.dim() > 1 else finite
        if not bool(each.all()):
            return start + int((~each).nonzero()[0])
    return None
