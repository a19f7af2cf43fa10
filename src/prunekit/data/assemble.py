"""Examples made into a dataset: held out, limited, converted, standardised; a user's tensors as they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunekit.data.dataset import Dataset, DataSettings, Scaling, Split, Task
from prunekit.errors import DataError, InputError
from prunekit.seeds import derive


class Raw(NamedTuple):
    """Examples as their source gives them.

    Attributes:
        inputs: (N, features) float64, or (N, channels, height, width) uint8.
        targets: (N,) int64 class numbers, or (N, outputs) float64 values.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]

    def take(self, which: NDArray[np.intp]) -> Raw:
        """The examples with these numbers, in this order."""
        return Raw(self.inputs[which], self.targets[which])


def assemble(
    name: str, raw: Raw, settings: DataSettings, *, classes: int | None, test: Raw | None = None
) -> Dataset:
    """The dataset that the settings make of a source's examples.

    The test part is the official one, or drawn first, so that it depends on `seed` and `test` alone; then the
    validation part is drawn from what is left. All inputs are standardised with the mean and the standard
    deviation of the training examples that are used.

    Args:
        name: of the dataset.
        raw: the examples to split; without the test part if that is given.
        settings: the fractions, the seed and the limit.
        classes: how many there are; None for a regression.
        test: the official test part, where there is one.

    Raises:
        InputError: if a part would be empty.
    """
    if test is None:
        rest, held_out = hold_out(_groups(raw, classes), settings.test, derive(settings.seed, "test split"))
        raw, test = raw.take(rest), raw.take(held_out)
    rest, held_out = hold_out(
        _groups(raw, classes), settings.validation, derive(settings.seed, "validation split")
    )
    train = raw.take(rest[: settings.limit])
    train_inputs = _floating(train.inputs)
    scaling = Scaling.fit(train_inputs)

    def split(part: Raw, inputs: Tensor) -> Split:
        dtype = np.float32 if classes is None else np.int64
        return Split(scaling.apply_(inputs).float(), torch.from_numpy(part.targets.astype(dtype)))

    validation = raw.take(held_out)
    return Dataset(
        name=name,
        task="regression" if classes is None else "classification",
        train=split(train, train_inputs),
        validation=split(validation, _floating(validation.inputs)),
        test=split(test, _floating(test.inputs)),
        outputs=raw.targets.shape[1] if classes is None else classes,
    )


def hold_out(
    groups: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Divide examples at random, each group in the same proportion.

    Args:
        groups: (N,) the group (class) of each example.
        fraction: the part to hold out, in (0, 1). Each group gives up its exact share rounded up or down,
            so that the shares add up to `fraction * N`, rounded, and keeps at least one example.
        seed: of the random order.

    Returns:
        The numbers of the examples that stay and of those held out, both in a random order.

    Raises:
        InputError: if nothing would be held out.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    random = np.random.default_rng(seed)
    order = random.permutation(len(groups))
    held = np.zeros(len(groups), dtype=bool)
    for number, quota in enumerate(_quotas(sizes, fraction)):
        held[order[group[order] == number][:quota]] = True
    if not held.any():
        raise InputError(
            f"a fraction of {fraction} of {len(groups)} examples holds out none; give a larger one"
        )
    # A fresh order: in the first one, the classes that were complete earlier would lead what stays.
    order = random.permutation(len(groups))
    return order[~held[order]], order[held[order]]


def _quotas(sizes: NDArray[np.intp], fraction: float) -> NDArray[np.intp]:
    """How many each group gives up: the method of largest remainders."""
    exact = sizes * fraction
    quotas = np.floor(exact).astype(np.intp)
    missing = int(exact.sum() + 0.5) - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    return np.minimum(quotas, sizes - 1)


def _groups(raw: Raw, classes: int | None) -> NDArray[np.int64]:
    return np.zeros(len(raw.inputs), dtype=np.int64) if classes is None else raw.targets


def _floating(inputs: NDArray[Any]) -> Tensor:
    """A copy to compute with: tables in double precision, images in single, to spare memory."""
    return torch.from_numpy(inputs.astype(np.float32 if inputs.dtype == np.uint8 else np.float64))


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
    rest, held_out = hold_out(_strata(whole.targets), fraction, seed)
    return _take(whole, rest), _take(whole, held_out)


def _strata(targets: Tensor) -> NDArray[np.int64]:
    if targets.is_floating_point():
        return np.zeros(len(targets), dtype=np.int64)
    return targets.cpu().numpy()


def _take(split: Split, which: NDArray[np.intp]) -> Split:
    numbers = torch.from_numpy(which).to(split.inputs.device)
    return Split(split.inputs[numbers], split.targets[numbers.to(split.targets.device)])
