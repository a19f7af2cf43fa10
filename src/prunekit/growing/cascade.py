"""Cascade correlation: outputs, candidates, installation, and again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.growing.candidates import best_candidate
from prunekit.growing.examples import CascadeExamples, check_examples
from prunekit.growing.history import CascadeRow
from prunekit.growing.network import CascadeNetwork
from prunekit.growing.outputs import train_outputs
from prunekit.growing.settings import CascadeSettings
from prunekit.losses import LOSSES
from prunekit.seeds import generator
from prunekit.training import TrainingError


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
    # installed units never change, so their values on the examples are computed once and kept
    features = train.inputs
    judged_features = None if judged is None else judged.inputs
    newest: float | None = None
    while True:
        error = train_outputs(network, features, train.targets, settings)
        if not math.isfinite(error):
            raise TrainingError(
                f"the error is not finite with {len(rows)} units: standardise the inputs and the targets"
            )
        with torch.no_grad():
            out = network.output(features)
            seen: tuple[float | None, float | None] = (None, None)
            if judged is not None and judged_features is not None:
                seen = _judge(network.output(judged_features), judged, settings)
        row = CascadeRow(
            units=len(rows),
            train_error=error,
            validation_error=seen[0],
            train_accuracy=train.accuracy(out),
            validation_accuracy=seen[1],
            correlation=newest,
            seconds=time.perf_counter() - began,
        )
        rows.append(row)
        if report is not None:
            report(row)
        if error <= settings.target_error or len(network.units) >= settings.max_units:
            return rows
        candidate = best_candidate(
            features, _errors(out, train, settings), settings, generator(seed, "cascade", len(network.units))
        )
        if not candidate.correlation > 0:
            return rows
        network.install(candidate.weight, candidate.bias)
        newest = candidate.correlation
        with torch.no_grad():
            features = network.extend(features, len(rows) - 1)
            if judged_features is not None:
                judged_features = network.extend(judged_features, len(rows) - 1)


def _judge(
    outputs: Tensor, examples: CascadeExamples, settings: CascadeSettings
) -> tuple[float, float | None]:
    error = float(LOSSES[settings.loss](outputs, examples.targets))
    return error + 0.0, examples.accuracy(outputs)  # cross-entropy can be -0.0


def _errors(outputs: Tensor, examples: CascadeExamples, settings: CascadeSettings) -> Tensor:
    """E, (N, outputs): what comes out minus what should; for cross-entropy, of the probabilities."""
    if settings.loss == "cross_entropy":
        outputs = outputs.softmax(1)
    return outputs - examples.targets


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
