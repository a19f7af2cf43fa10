"""Cascade correlation: outputs, candidates, installation, and again; a row for each number of units."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.errors import DataError, InputError
from prunekit.growing.network import CascadeNetwork, CascadeSettings, best_candidate, train_outputs
from prunekit.losses import LOSSES
from prunekit.seeds import generator
from prunekit.training import TrainingError


@dataclass(frozen=True)
class CascadeRow:
    """A cascade after the output phase with `units` hidden units. Rows of equal runs are equal.

    Attributes:
        units: the number of hidden units.
        train_error: in the loss of the settings, a mean over the examples.
        validation_error: the same on the validation examples, if there are any.
        train_accuracy: the fraction of examples whose largest output is their class; None for a regression.
        validation_accuracy: the same on the validation examples.
        correlation: S of the newest unit when it was installed; None without units.
        seconds: since growing began; two rows that differ in it alone are equal.
    """

    units: int
    train_error: float
    validation_error: float | None
    train_accuracy: float | None
    validation_accuracy: float | None
    correlation: float | None
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Grown:
    """A grown network, and a row for each number of its units: 0, 1, 2, ..."""

    network: CascadeNetwork
    history: tuple[CascadeRow, ...]


def grow(
    settings: CascadeSettings,
    inputs: Tensor,
    targets: Tensor,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    seed: int,
    outputs: int | None = None,
    report: Callable[[CascadeRow], None] | None = None,
) -> Grown:
    """Grow a network by cascade correlation.

    Train the outputs to a plateau; stop at the target error or the number of units; else train a pool of
    candidates on the errors that are left, install the best for good, and begin again. The settings differ
    from the authors' program in the optimizers, see `CascadeSettings`.

    The units of a shorter run are the first ones of a longer run with the same seed. Everything is computed
    in the type and on the device of the inputs; torch's global generators are not touched.

    Args:
        settings: how.
        inputs: (N, *shape), floating point, flattened; best standardised.
        targets: (N,) int64 class numbers, or (N, outputs) floating point values.
        validation: inputs and targets that are judged and nothing more.
        seed: of the initial values of the candidates.
        outputs: the number of classes, if the largest may be missing in the targets.
        report: called with each row as soon as it is known.

    Returns:
        The network in training mode, its units frozen, and the history. Growing ends before the target
        where no candidate has any correlation with the errors.

    Raises:
        InputError: for tensors of another kind or shape, or cross-entropy without classes.
        DataError: for examples that are empty, not finite, unequal in number, or of an unknown class.
        TrainingError: if the error is not finite, as inputs or targets are too large for their type.

    Source: Fahlman & Lebiere (1990), The Cascade-Correlation Learning Architecture, NIPS 2.
    """
    train, judged = _checked(settings, inputs, targets, validation, outputs)
    network = CascadeNetwork(
        train.inputs.shape[1],
        train.targets.shape[1],
        activation=settings.activation,
        dtype=train.inputs.dtype,
        device=train.inputs.device,
    )
    with torch.enable_grad():
        return Grown(network, tuple(_rows(network, settings, train, judged, seed, report)))


def _rows(
    network: CascadeNetwork,
    settings: CascadeSettings,
    train: CascadeExamples,
    judged: CascadeExamples | None,
    seed: int,
    report: Callable[[CascadeRow], None] | None,
) -> list[CascadeRow]:
    began = time.perf_counter()
    rows: list[CascadeRow] = []
    newest: float | None = None
    while True:
        error = train_outputs(network, train.inputs, train.targets, settings)
        if not math.isfinite(error):
            raise TrainingError(
                f"the error is not finite with {len(rows)} units: standardise the inputs and the targets"
            )
        with torch.no_grad():
            out = network.output(train.inputs)
            validation_error, validation_accuracy = _judge(network, judged, settings)
        row = CascadeRow(
            units=len(rows),
            train_error=error,
            validation_error=validation_error,
            train_accuracy=train.accuracy(out),
            validation_accuracy=validation_accuracy,
            correlation=newest,
            seconds=time.perf_counter() - began,
        )
        rows.append(row)
        if report is not None:
            report(row)
        if error <= settings.target_error or len(network.units) >= settings.max_units:
            return rows
        if settings.loss == "cross_entropy":
            out = out.softmax(1)
        candidate = best_candidate(
            train.inputs, out - train.targets, settings, generator(seed, "cascade", len(network.units))
        )
        if not candidate.correlation > 0:
            return rows
        network.install(candidate.weight, candidate.bias)
        newest = candidate.correlation
        # installed units never change, so their values on the examples are computed once and kept
        train = train.extended(network)
        judged = judged and judged.extended(network)


def _judge(
    network: CascadeNetwork, examples: CascadeExamples | None, settings: CascadeSettings
) -> tuple[float | None, float | None]:
    """The error and the accuracy."""
    if examples is None:
        return None, None
    outputs = network.output(examples.inputs)
    error = float(LOSSES[settings.loss](outputs, examples.targets))
    return error + 0.0, examples.accuracy(outputs)  # cross-entropy can be -0.0


def smallest_units(
    history: Iterable[CascadeRow], error: float, *, of: Literal["train", "validation"] = "train"
) -> int | None:
    """The smallest number of hidden units whose error is not above `error`; None if there is none.

    Args:
        history: of a `Grown`, in any order.
        error: in the loss of its settings.
        of: which examples are judged.

    Raises:
        InputError: if the error is not a number, `of` is something else, or there was no validation.
    """
    if math.isnan(error):
        raise InputError("error must be a number, not NaN")
    if of not in ("train", "validation"):
        raise InputError(f"of must be 'train' or 'validation', not {of!r}")
    reached = []
    for row in history:
        found = row.train_error if of == "train" else row.validation_error
        if found is None:
            raise InputError("the history holds no validation error: give validation examples to grow()")
        if found <= error:
            reached.append(row.units)
    return min(reached, default=None)


@dataclass(frozen=True)
class CascadeExamples:
    """Examples as both phases want them.

    Attributes:
        inputs: (N, features), behind which come the values of the units.
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

    @torch.no_grad()
    def extended(self, network: CascadeNetwork) -> CascadeExamples:
        """The same examples with the value of the network's newest unit behind their inputs."""
        return replace(self, inputs=network.extend(self.inputs, len(network.units) - 1))

    def accuracy(self, outputs: Tensor) -> float | None:
        """The fraction of examples whose largest output is their class; None for a regression."""
        if self.classes is None:
            return None
        return float((outputs.argmax(1) == self.classes).double().mean())


def _checked(
    settings: CascadeSettings,
    inputs: Tensor,
    targets: Tensor,
    validation: tuple[Tensor, Tensor] | None,
    outputs: int | None,
) -> tuple[CascadeExamples, CascadeExamples | None]:
    if not isinstance(settings, CascadeSettings):
        raise InputError(f"settings must be CascadeSettings, not {type(settings).__name__}")
    train = check_examples(inputs, targets, outputs=outputs)
    if settings.loss == "cross_entropy" and train.classes is None:
        raise InputError("cross_entropy needs targets of int64 class numbers (N,)")
    if validation is None:
        return train, None
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise InputError("validation must be a pair of tensors (inputs, targets)")
    judged = check_examples(*validation, outputs=train.targets.shape[1], part="validation")
    if (judged.classes is None) != (train.classes is None):
        raise InputError("the training and the validation targets must both be classes, or both be values")
    if judged.inputs.shape[1] != train.inputs.shape[1]:
        raise InputError(
            f"validation inputs have {judged.inputs.shape[1]} features, training {train.inputs.shape[1]}"
        )
    return train, judged.to(train.inputs)


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
