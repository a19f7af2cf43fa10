"""A dataset: its settings, its three splits, and how a source's examples or a user's tensors become them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from prunekit.batches import as_tensors
from prunekit.data.own_data import ARGUMENTS, asked_for, find_function
from prunekit.digests import digest_of_tensors
from prunekit.errors import DataError, InputError, PrunekitError, explaining, naming, shown
from prunekit.seeds import derive
from prunekit.settings import WHOLE, Settings

TaskKind = Literal["classification", "regression"]


@dataclass(frozen=True)
class Split:
    """Examples and what is to be said of them.

    Attributes:
        inputs: (N, ...) float32, or (N, T) int64 characters of texts.
        targets: (N,) int64 class numbers, or one for each of T positions, or (N, outputs) float32 values.

    Raises:
        DataError: if there is no example, if there are not as many inputs as targets, or if an input or a
            target is NaN or infinite.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.inputs.ndim == 0 or self.targets.ndim == 0:
            raise DataError("the inputs and the targets of a split need a first dimension of examples")
        if len(self.inputs) != len(self.targets):
            raise DataError(f"a split has {len(self.inputs)} inputs but {len(self.targets)} targets")
        if self.inputs.numel() == 0:
            raise DataError(f"a split is empty: its inputs have the shape {tuple(self.inputs.shape)}")
        for what, values in (("inputs", self.inputs), ("targets", self.targets)):
            if not _all_finite(values):
                raise DataError(f"the {what} of a split hold NaN or infinite values")

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        return f"Split({len(self):,} examples of shape {tuple(self.inputs.shape[1:])})"

    def to(self, device: torch.device | str) -> Split:
        """The same examples on a device."""
        return Split(self.inputs.to(device), self.targets.to(device))

    def head(self, n: int) -> Split:
        """The first `n` examples, or all of them where there are fewer. Raises `DataError` if `n` < 1."""
        if n < 1:
            raise DataError(f"the head of a split needs at least one example, not {n}")
        return Split(self.inputs[:n], self.targets[:n])


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one task.

    Attributes:
        name: what the dataset is called in settings and reports.
        task: "classification" or "regression".
        train: what is learned from, in a seeded random order; what the scaling of all inputs was fitted on.
        validation: what is chosen by.
        test: what is reported.
        outputs: the number of classes, or of values to predict.

    Raises:
        DataError: if the splits differ in the shape of an example, or hold targets that do not fit the task.
    """

    name: str
    task: TaskKind
    train: Split
    validation: Split
    test: Split
    outputs: int

    def __post_init__(self) -> None:
        if self.task not in get_args(TaskKind):
            raise DataError(f"{self.name}: the task {self.task!r} is none of {', '.join(get_args(TaskKind))}")
        for part, split in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            shape = tuple(split.inputs.shape[1:])
            if shape != self.input_shape:
                raise DataError(
                    f"{self.name}: {part} inputs have the shape {shape}, train {self.input_shape}"
                )
            self._check_targets(part, split.targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example, without the batch."""
        return tuple(self.train.inputs.shape[1:])

    def digest(self) -> str:
        """12 hexadecimal digits of the SHA-256 of all examples, in their parts and order."""
        tensors = {
            f"{part}.{name}": values.cpu()
            for part, split in (("train", self.train), ("validation", self.validation), ("test", self.test))
            for name, values in (("inputs", split.inputs), ("targets", split.targets))
        }
        return digest_of_tensors(tensors, {"task": self.task})[:12]

    def to(self, device: torch.device | str) -> Dataset:
        """The same dataset with all its tensors on a device."""
        moved = {part: getattr(self, part).to(device) for part in ("train", "validation", "test")}
        return replace(self, **moved)

    def _check_targets(self, part: str, targets: Tensor) -> None:
        if self.task == "regression":
            if not targets.is_floating_point() or tuple(targets.shape[1:]) != (self.outputs,):
                raise DataError(
                    f"{self.name}: {part} targets must be floating point of shape (N, {self.outputs}), "
                    f"not {targets.dtype} of shape {tuple(targets.shape)}"
                )
            return
        if targets.dtype != torch.int64:
            raise DataError(f"{self.name}: {part} targets must be int64 class numbers, not {targets.dtype}")
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= self.outputs:
            raise DataError(
                f"{self.name}: {part} targets run from {low} to {high}, "
                f"but the classes are numbered 0 to {self.outputs - 1}"
            )


def _all_finite(values: Tensor) -> bool:
    # The extremes carry NaN and infinity, and unlike isfinite().all() need no second tensor of this size.
    return all(bool(torch.isfinite(extreme)) for extreme in values.aminmax())


@dataclass(frozen=True)
class Scaling:
    """The mean and the standard deviation of each feature of a table or each channel of images.

    Both have the dimensions of the inputs, with size 1 everywhere but along dimension 1.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, inputs: Tensor) -> Scaling:
        """The scaling that gives `inputs` mean 0 and (population) standard deviation 1 along dimension 1.

        Args:
            inputs: floating point, (N, features) or (N, channels, ...).
        """
        others = [dim for dim in range(inputs.ndim) if dim != 1]
        variance, mean = torch.var_mean(inputs, dim=others, correction=0, keepdim=True)
        # Told by its extremes: rounding can leave a constant feature a variance just above 0.
        constant = inputs.amax(others, keepdim=True) == inputs.amin(others, keepdim=True)
        return cls(mean, variance.sqrt().masked_fill(constant, 1))

    def apply_(self, inputs: Tensor) -> Tensor:
        """Scale `inputs` in place, since a second copy of a set of images can be more than memory holds."""
        return inputs.sub_(self.mean).div_(self.std)


class DataSettings(Settings):
    """The name of a dataset and the numbers that fix its split; equal settings give equal tensors.

    Attributes:
        name: one of `prunekit.data.names()`, or `package.module:function` for a function of the user's own,
            annotated to return a `Dataset`, which is imported if its module is allowed (see
            `prunekit.permission`). It is given `validation`, `test`, `seed` and `data_dir`, as far as it has
            arguments of these names.
        validation: the fraction of the training part that becomes the validation part, in (0, 1).
        test: the fraction of all examples that becomes the test part, in (0, 1); ignored by the sets that
            come with an official test part.
        more_test: how many training examples become test examples, too, behind an official test part, whose
            figures are more accurate for it; ignored where there is none.
        seed: what the split is drawn from (and the examples, for a set that is generated).
        limit: use only the first so many training examples of the shuffled training part, for quick runs.
        content: the digest of the examples (`Dataset.digest`), so that others are refused.
    """

    name: str
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    more_test: int = Field(default=0, ge=0, le=WHOLE)
    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, gt=0)
    content: str | None = None
    _function: Callable[..., Dataset] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _keep_function(self) -> DataSettings:
        if not self.is_own:
            return self
        self._function = find_function(self.name, Dataset)  # later, nobody needs permission any more
        for key in ("validation", "test", "seed", "more_test"):
            if getattr(self, key) != type(self).model_fields[key].default and not self.asks_for(key):
                raise ValueError(
                    f"{key}: {self.name} does not ask for it; it may ask for {', '.join(ARGUMENTS)}"
                )
        return self

    @classmethod
    def _label(cls) -> str:
        return "dataset"

    @property
    def is_own(self) -> bool:
        """Whether the name is that of a function of the user's own."""
        return ":" in self.name

    def asks_for(self, argument: str) -> bool:
        """Whether the user's own function has an argument of a name; False for a dataset by name."""
        return self._function is not None and argument in asked_for(self._function)

    def own(self, data_dir: Path | None) -> Dataset:
        """What the user's own function gives.

        Args:
            data_dir: what it is given as `data_dir`.

        Raises:
            DataError: if it fails, or gives something else than a `Dataset`.
        """
        function = self._function or find_function(self.name, Dataset)
        available = {
            "validation": self.validation,
            "test": self.test,
            "seed": self.seed,
            "data_dir": data_dir,
        }
        try:
            found = function(**{name: available[name] for name in asked_for(function)})
        except PrunekitError as error:
            raise type(error)(f"the dataset {self.name}: {error}") from error
        except Exception as error:  # the user's own code: whatever it raises is the user's to see
            raise DataError(f"the dataset {self.name} failed with {type(error).__name__}: {error}") from error
        if not isinstance(found, Dataset):
            raise DataError(f"the dataset {self.name} gave {shown(found)}, which is no prunekit.data.Dataset")
        train = found.train if self.limit is None else found.train.head(self.limit)
        return replace(found, name=self.name, train=train)


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


def assemble(raw: Raw, settings: DataSettings, *, classes: int | None, test: Raw | None = None) -> Dataset:
    """The dataset that the settings make of a source's examples.

    The test part is the official one, or drawn first, so that it depends on `seed` and `test` alone; then the
    validation part is drawn from what is left. All inputs are standardised with the mean and the standard
    deviation of the training examples that are used.

    Args:
        raw: the examples to split; without the test part if that is given.
        settings: the name, the fractions, the seed and the limit.
        classes: how many there are; None for a regression.
        test: the official test part, where there is one.

    Raises:
        InputError: if a part would be empty.
    """
    if test is None:
        rest, held_out = hold_out(raw.targets, settings.test, derive(settings.seed, "test split"))
        raw, test = raw.take(rest), raw.take(held_out)
    elif settings.more_test:
        if settings.more_test >= len(raw.targets):
            have = f"{settings.name} has {len(raw.targets):,} training examples"
            raise InputError(f"more_test = {settings.more_test:,}: {have}")
        share = settings.more_test / len(raw.targets)
        rest, held_out = hold_out(raw.targets, share, derive(settings.seed, "test split"))
        more = raw.take(held_out)
        raw = raw.take(rest)
        test = Raw(np.concatenate([test.inputs, more.inputs]), np.concatenate([test.targets, more.targets]))
    rest, held_out = hold_out(raw.targets, settings.validation, derive(settings.seed, "validation split"))
    train = raw.take(rest[: settings.limit])
    train_inputs = _floating(train.inputs)
    scaling = Scaling.fit(train_inputs)

    def split(part: Raw, inputs: Tensor) -> Split:
        dtype = np.float32 if classes is None else np.int64
        return Split(scaling.apply_(inputs).float(), torch.from_numpy(part.targets.astype(dtype)))

    validation = raw.take(held_out)
    return Dataset(
        name=settings.name,
        task="regression" if classes is None else "classification",
        train=split(train, train_inputs),
        validation=split(validation, _floating(validation.inputs)),
        test=split(test, _floating(test.inputs)),
        outputs=raw.targets.shape[1] if classes is None else classes,
    )


def hold_out(targets: NDArray[Any], fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Divide examples at random, each class in the same proportion.

    Args:
        targets: (N,) the class of each example, or real values (N, ...), which are all of one class.
        fraction: the part to hold out, in (0, 1). Each class gives up its exact share rounded up or down,
            so that the shares add up to `fraction * N`, rounded, and keeps at least one example.
        seed: of the random order.

    Returns:
        The numbers of the examples that stay and of those held out, both in a random order.

    Raises:
        InputError: if nothing would be held out.
    """
    classes = np.zeros(len(targets), dtype=np.int64) if targets.dtype.kind == "f" else targets
    _, group, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    random = np.random.default_rng(seed)
    order = random.permutation(len(targets))
    held = np.zeros(len(targets), dtype=bool)
    for number, quota in enumerate(_quotas(sizes, fraction)):
        held[order[group[order] == number][:quota]] = True
    if not held.any():
        raise InputError(
            f"a fraction of {fraction} of {len(targets)} examples holds out none; give a larger one"
        )
    # A fresh order: in the first one, the classes that were complete earlier would lead what stays.
    order = random.permutation(len(targets))
    return order[~held[order]], order[held[order]]


def _quotas(sizes: NDArray[np.intp], fraction: float) -> NDArray[np.intp]:
    """How many each class gives up: the method of largest remainders."""
    exact = sizes * fraction
    quotas = np.floor(exact).astype(np.intp)
    missing = int(exact.sum() + 0.5) - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    return np.minimum(quotas, sizes - 1)


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
        DataError: if a part is empty, has not as many inputs as targets, holds texts, NaN or infinite values,
            or does not fit the others.
    """
    for argument, fraction in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 < fraction < 1:
            raise InputError(f"{argument} = {fraction!r}: must lie between 0 and 1")
    regression = _numbers("targets", train[1]).is_floating_point()
    whole = _split(train, regression)
    test_split = _split(test, regression) if test is not None else None
    validation_split = _split(validation, regression) if validation is not None else None
    if test_split is None:
        whole, test_split = _divide(whole, test_fraction, derive(seed, "test split"))
    if validation_split is None:
        whole, validation_split = _divide(whole, validation_fraction, derive(seed, "validation split"))
    parts = (whole, validation_split, test_split)
    outputs = whole.targets.shape[1] if regression else 1 + max(int(part.targets.max()) for part in parts)
    task: TaskKind = "regression" if regression else "classification"
    return Dataset(name, task, whole, validation_split, test_split, outputs)


def _numbers(what: str, values: Any) -> Tensor:
    """A tensor of what is given as one, as an array, a table's columns or a list of numbers."""
    with naming(f"the {what}"):
        if not isinstance(values, list | tuple):
            values = as_tensors(values)
        with explaining(DataError, lambda: "they are no tensor, array or list of numbers"):
            return torch.as_tensor(values).detach()


def _split(pair: Pair, regression: bool) -> Split:
    inputs, targets = _numbers("inputs", pair[0]), _numbers("targets", pair[1])
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
    rest, held_out = hold_out(whole.targets.cpu().numpy(), fraction, seed)
    return _take(whole, rest), _take(whole, held_out)


def _take(split: Split, which: NDArray[np.intp]) -> Split:
    numbers = torch.from_numpy(which).to(split.inputs.device)
    return Split(split.inputs[numbers], split.targets[numbers.to(split.targets.device)])
