"""A dataset: three splits of tensors, the task that they pose, their scaling and their settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from prunekit.errors import DataError
from prunekit.settings import Settings

Task = Literal["classification", "regression"]


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
    task: Task
    train: Split
    validation: Split
    test: Split
    outputs: int

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise DataError(f"{self.name}: the task {self.task!r} is none of {', '.join(get_args(Task))}")
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
        name: one of `prunekit.data.names()`.
        validation: the fraction of the training part that becomes the validation part, in (0, 1).
        test: the fraction of all examples that becomes the test part, in (0, 1); ignored by the sets that
            come with an official test part.
        seed: what the split is drawn from (and the examples, for a set that is generated).
        limit: use only the first so many training examples of the shuffled training part, for quick runs.
    """

    name: str
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, gt=0)
