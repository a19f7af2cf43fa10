"""From all the examples of a source to a dataset: hold out, limit, convert, standardise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunekit.data.scaling import Scaling
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset, Split
from prunekit.errors import InputError
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
