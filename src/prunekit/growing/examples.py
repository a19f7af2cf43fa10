"""Examples to grow on: checked, inputs flattened, classes as one-hot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.errors import DataError, InputError


@dataclass(frozen=True)
class CascadeExamples:
    """Examples as both phases want them.

    Attributes:
        inputs: (N, features).
        targets: (N, outputs) in the type of the inputs: real values, or 1 for the class and 0 elsewhere.
        classes: (N,) class numbers; None for a regression.
    """

    inputs: Tensor
    targets: Tensor
    classes: Tensor | None

    def to(self, like: Tensor) -> CascadeExamples:
        """The same examples in the type and on the device of a tensor."""
        classes = None if self.classes is None else self.classes.to(like.device)
        return CascadeExamples(self.inputs.to(like), self.targets.to(like), classes)

    def accuracy(self, outputs: Tensor) -> float | None:
        """The fraction of examples whose largest output is their class; None for a regression."""
        if self.classes is None:
            return None
        return float((outputs.argmax(1) == self.classes).double().mean())


def check_examples(
    inputs: Tensor, targets: Tensor, *, outputs: int | None = None, part: str = "training"
) -> CascadeExamples:
    """The examples, if a cascade can be grown on them.

    Args:
        inputs: (N, *shape), floating point.
        targets: (N,) int64 class numbers, or (N, outputs) floating point values.
        outputs: the number of classes or of values; None takes it from the targets.
        part: how messages call them.

    Raises:
        InputError: for something else than tensors, or tensors of another kind or shape.
        DataError: if there are no examples, the counts differ, a value is not finite, or a class number is
            outside of [0, outputs).
    """
    _check_values(inputs, targets, part)
    inputs = inputs.detach().flatten(1)
    if targets.dtype == torch.int64 and targets.ndim == 1:
        low, high = (int(bound) for bound in targets.aminmax())
        count = high + 1 if outputs is None else outputs
        if low < 0 or high >= count:
            raise DataError(
                f"{part} targets run from {low} to {high}, but the classes are numbered 0 to {count - 1}"
                + (": give their number as outputs=" if low >= 0 else "")
            )
        classes = targets.to(inputs.device)
        return CascadeExamples(inputs, F.one_hot(classes, count).to(inputs), classes)
    if targets.is_floating_point() and targets.ndim == 2 and outputs in (None, targets.shape[1]):
        return CascadeExamples(inputs, targets.detach().to(inputs), None)
    raise InputError(
        f"{part} targets must be int64 class numbers (N,) or floating point values "
        f"(N, {outputs or 'outputs'}), not {targets.dtype} of shape {tuple(targets.shape)}"
    )


def _check_values(inputs: Tensor, targets: Tensor, part: str) -> None:
    for name, value in (("inputs", inputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise InputError(f"{part} {name} must be a tensor, not {type(value).__name__}")
        if not value.numel():
            raise DataError(f"{part} {name} of shape {tuple(value.shape)} are empty")
    if not inputs.is_floating_point() or inputs.ndim < 2:
        raise InputError(
            f"{part} inputs must be floating point of shape (N, features), "
            f"not {inputs.dtype} of shape {tuple(inputs.shape)}"
        )
    if not targets.ndim or len(inputs) != len(targets):
        raise DataError(
            f"there are {len(inputs)} {part} inputs, but targets of the shape {tuple(targets.shape)}"
        )
    for name, value in (("inputs", inputs), ("targets", targets)):
        if not bool(value.isfinite().all()):
            raise DataError(f"{part} {name} hold NaN or infinity")
