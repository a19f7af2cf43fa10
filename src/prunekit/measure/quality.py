"""The quality of a model's outputs on a set of examples."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.errors import InputError, ModelError
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.settings import WHOLE, whole
from prunekit.targets import device_of

TaskKind = Literal["classification", "regression"]


@dataclass(frozen=True)
class Quality:
    """What `evaluate` found, each a mean over the examples.

    Attributes:
        examples: number of examples; where each position of an example has a class, the number of positions.
        loss: cross-entropy in nats, or the mean squared error, or the mean of the loss that was passed.
        accuracy: fraction in [0, 1] whose class has the highest output; None for regression.
        top5: fraction in [0, 1] whose class is among the five highest outputs; None for regression, and for
            five classes or fewer, where it would always be 1.
        mse: classification: the squared error of the raw outputs against the one-hot targets, **summed** over
            the outputs of an example. Regression: the squared error **averaged** over the outputs, as in
            `torch.nn.MSELoss`.
    """

    examples: int
    loss: float
    accuracy: float | None
    top5: float | None
    mse: float


def evaluate(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    task: TaskKind,
    batch_size: int = 1024,
    loss: Loss | None = None,
) -> Quality:
    """The quality of `model` on `inputs` and `targets`, in evaluation mode and without gradients.

    The result does not depend on `batch_size` beyond rounding: errors are computed and summed in float64.
    Equal outputs are ranked by class number, so that a network whose outputs are all equal is right on the
    examples of class 0 only. Outputs that are not finite give a loss and `mse` that are not finite; an
    example with a NaN among its outputs counts as wrong.

    Args:
        model: maps (n, ...) to raw outputs: (n, classes), or the shape of the targets for regression.
        inputs: (N, ...); moved to the model's device batch by batch.
        targets: classification: class numbers of an integer type, (N,), or (N, T) for outputs (n, classes, T)
            that tell of T positions; regression: (N, outputs).
        task: "classification" or "regression".
        batch_size: number of examples in one forward pass.
        loss: gives the mean over a batch of outputs (as the model returns them) and targets, in place of the
            default loss.

    Raises:
        InputError: if inputs and targets do not go together, or the targets have another shape than the task
            and the outputs ask for; shapes are never broadcast.
        ModelError: if the model does not return one tensor of raw outputs for each example.
    """
    measured = {"classification": _classification, "regression": _regression}.get(task)
    if measured is None:
        raise InputError(f"task must be 'classification' or 'regression', got {task!r}")
    _check_sizes(inputs, targets, batch_size)
    targets = _class_numbers(targets) if task == "classification" else targets
    device = device_of(model)
    count = _count(task, targets)
    sums: dict[str, float] = defaultdict(float)
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            outputs = model(inputs[start : start + batch_size].to(device))
            wanted = targets[start : start + batch_size].to(device)
            _check_outputs(outputs, len(wanted))
            found = measured(*_by_position(outputs, wanted))
            if loss is not None:
                found["loss"] = float(loss(outputs, wanted)) * _count(task, wanted)
            for name, each in found.items():
                sums[name] += each
    means = {name: total / count for name, total in sums.items()}
    return Quality(count, means["loss"], means.get("accuracy"), means.get("top5"), means["mse"])


def _count(task: TaskKind, targets: Tensor) -> int:
    return targets.numel() if task == "classification" else len(targets)


def _by_position(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (n, classes, T) and targets (n, T) of positions as those of n x T examples; others as is."""
    if outputs.dim() == 3 and outputs.shape[::2] == targets.shape and not targets.is_floating_point():
        return outputs.movedim(1, -1).flatten(0, 1), targets.flatten()
    return outputs, targets


def _classification(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Sums over the examples of one batch."""
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise ModelError(
            f"classification needs outputs of the shape (n, classes), 2 or more, got {tuple(outputs.shape)}"
        )
    if targets.dim() != 1:
        raise InputError(
            f"the targets have the shape {tuple(targets.shape)}, which goes with outputs (n, classes, T), "
            f"but the model returned {tuple(outputs.shape)}"
        )
    classes = outputs.shape[1]
    if targets.max() >= classes:
        raise InputError(
            f"there is a target of class {int(targets.max())}, but the model has {classes} outputs"
        )
    outputs = outputs.double()
    at_target = targets[:, None]
    one_hot_error = outputs.scatter_add(1, at_target, outputs.new_full(at_target.shape, -1.0))
    rank = _rank(outputs, at_target)
    sums = {
        "loss": float(F.cross_entropy(outputs, targets, reduction="sum")),
        "mse": float(one_hot_error.square().sum()),
        "accuracy": int((rank == 0).sum()),
    }
    if classes > 5:
        sums["top5"] = int((rank < 5).sum())
    return sums


def _rank(outputs: Tensor, at_target: Tensor) -> Tensor:
    """(n,): how many classes come before the target's; all of them if any output is NaN."""
    own = outputs.gather(1, at_target)
    earlier = torch.arange(outputs.shape[1], device=outputs.device) < at_target
    before = (outputs > own) | ((outputs == own) & earlier) | outputs.isnan().any(dim=1, keepdim=True)
    return before.sum(dim=1)


def _regression(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Sums over the examples of one batch."""
    if outputs.shape != targets.shape:
        raise InputError(
            f"the outputs have the shape {tuple(outputs.shape)} but the targets {tuple(targets.shape)}; "
            "regression compares them number by number and broadcasts neither"
        )
    error = outputs.double() - targets.double()
    squared = float(error.square().reshape(len(error), -1).mean(dim=1).sum())
    return {"loss": squared, "mse": squared}


def _check_sizes(inputs: Tensor, targets: Tensor, batch_size: int) -> None:
    whole("batch_size", batch_size, 1, WHOLE)
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets):
        raise InputError(
            f"inputs and targets must have the same first dimension, "
            f"got the shapes {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    if len(inputs) == 0:
        raise InputError("there are no examples to evaluate on")


def _class_numbers(targets: Tensor) -> Tensor:
    integers = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.dim() not in (1, 2) or not integers:
        raise InputError(
            "classification needs targets (N,), or (N, T) for T positions, of an integer type, "
            f"got the shape {tuple(targets.shape)} of {targets.dtype}"
        )
    numbers = targets.long()
    if numbers.min() < 0:
        raise InputError(f"class numbers start at 0, got {int(numbers.min())}")
    return numbers


def _check_outputs(outputs: object, examples: int) -> None:
    if not isinstance(outputs, Tensor):
        raise ModelError(f"the model must return one tensor of raw outputs, got {type(outputs).__name__}")
    if outputs.dim() == 0 or len(outputs) != examples:
        raise ModelError(f"the model returned the shape {tuple(outputs.shape)} for {examples} examples")
