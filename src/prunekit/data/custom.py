"""A user's own tensors as a dataset."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunekit.data.assemble import hold_out
from prunekit.data.splits import Dataset, Split, Task
from prunekit.errors import DataError, InputError
from prunekit.seeds import derive

Pair = tuple[Tensor, Tensor]


def from_tensors(
    train: Pair,
    validation: Pair | None = None,
    test: Pair | None = None,
    *,
    name: str = "custom",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """A dataset of tensors `(inputs, targets)`, used as they are: nothing is standardised.

    Floating-point targets, (N,) or (N, outputs), make a regression; integer or boolean targets (N,) make a
    classification with as many classes as the largest target of all parts says. A part that is not given is
    held out of `train`, first the test part, then the validation part, stratified by class.

    Args:
        train: inputs (N, ...) of real numbers, and targets.
        validation: the same for the validation part.
        test: the same for the test part.
        name: of the dataset.
        validation_fraction: of what is left of `train` without the test part; in (0, 1).
        test_fraction: of `train`; in (0, 1).
        seed: of the parts that are held out.

    Raises:
        InputError: for a fraction outside (0, 1), one that would hold out no example, or complex numbers.
        DataError: if a part is empty, has not as many inputs as targets, holds NaN or infinite values, or
            does not fit the others.
    """
    for argument, fraction in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 < fraction < 1:
            raise InputError(f"{argument} = {fraction!r}: must lie between 0 and 1")
    regression = torch.as_tensor(train[1]).is_floating_point()
    whole = _split(train, regression)
    test_split = _split(test, regression) if test is not None else None
    validation_split = _split(validation, regression) if validation is not None else None
    if test_split is None:
        whole, test_split = _divide(whole, test_fraction, derive(seed, "test split"))
    if validation_split is None:
        whole, validation_split = _divide(whole, validation_fraction, derive(seed, "validation split"))
    parts = (whole, validation_split, test_split)
    outputs = whole.targets.shape[1] if regression else 1 + max(int(part.targets.max()) for part in parts)
    task: Task = "regression" if regression else "classification"
    return Dataset(name, task, whole, validation_split, test_split, outputs)


def _split(pair: Pair, regression: bool) -> Split:
    inputs, targets = (torch.as_tensor(part).detach() for part in pair)
    if inputs.is_complex() or targets.is_complex():
        raise InputError("inputs and targets must be real numbers, not complex ones")
    if targets.is_floating_point() != regression:
        raise DataError("the targets of all parts must be of one kind: all floating point, or all integers")
    if not regression and targets.ndim != 1:
        raise DataError(f"class numbers must have the shape (N,), not {tuple(targets.shape)}")
    if regression and targets.ndim == 1:
        targets = targets[:, None]
    return Split(inputs.float(), targets.float() if regression else targets.long())


def _divide(whole: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    rest, held_out = hold_out(_groups(whole.targets), fraction, seed)
    return _take(whole, rest), _take(whole, held_out)


def _groups(targets: Tensor) -> NDArray[np.int64]:
    if targets.is_floating_point():
        return np.zeros(len(targets), dtype=np.int64)
    return targets.cpu().numpy()


def _take(split: Split, which: NDArray[np.intp]) -> Split:
    numbers = torch.from_numpy(which).to(split.inputs.device)
    return Split(split.inputs[numbers], split.targets[numbers.to(split.targets.device)])
