"""Shapes: what goes together when weights are removed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ranking import lowest, lowest_per_row
from prunekit.settings import Part
from prunekit.targets import Target

INPUTS_FIRST = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Conv1D")
"""The layer types whose weight has its inputs along the first dimension, and not along the second."""


class Shape(Part):
    """How the weights of one layer are chosen, once it is known how many of them go."""

    @abstractmethod
    def select(self, scores: Tensor, count: int) -> Tensor:
        """A mask (True = kept) that removes exactly `count` of the lowest scores that the shape allows."""

    @property
    def even(self) -> bool:
        """Whether every layer must lose the same fraction."""
        return False

    def check(self, target: Target, sparsities: Sequence[float | None]) -> None:
        """Refuse a layer or a schedule that does not fit the shape, with an `InputError`."""
        return


class Weight(Shape):
    """Single weights, anywhere in the layer."""

    name: ClassVar[str] = "weight"

    def select(self, scores: Tensor, count: int) -> Tensor:
        """Keep all but the `count` lowest, ties by position."""
        return ~lowest(scores, count)


class NM(Shape):
    """N:M pattern: of every `m` consecutive inputs of an output, `n` are kept.

    For convolutions consecutive means neighbouring input channels at the same kernel position, as sparse
    tensor cores want it. A step of a schedule keeps a whole number of every `m`, so its sparsity must be a
    multiple of 1/m, and the last step's must be 1 - n/m.
    """

    name: ClassVar[str] = "n:m"
    paper: ClassVar[str] = "Mishra et al. 2021, arXiv 2104.08378"
    n: int = Field(default=2, ge=1)
    m: int = Field(default=4, ge=2)

    @model_validator(mode="after")
    def _n_below_m(self) -> NM:
        if self.n >= self.m:
            raise ValueError(f"n = {self.n} of m = {self.m} removes nothing: n must be below m")
        return self

    def select(self, scores: Tensor, count: int) -> Tensor:
        """Remove the same number from every group of `m`; `count` must be a multiple of the groups."""
        inputs_last = scores.movedim(1, -1)
        groups = inputs_last.reshape(-1, self.m)
        if count % len(groups):
            raise InputError(
                f"{count} weights cannot be removed evenly from {len(groups)} groups of {self.m}"
            )
        kept = ~lowest_per_row(groups, count // len(groups))
        return kept.view(inputs_last.shape).movedim(-1, 1)

    @property
    def even(self) -> bool:
        """Every group of every layer loses the same number."""
        return True

    def check(self, target: Target, sparsities: Sequence[float | None]) -> None:
        """The inputs must divide into groups of `m`, the sparsities into whole weights of a group."""
        if target.kind in INPUTS_FIRST:
            raise InputError(
                f"{target.name} of a {target.kind} has its inputs in the first dimension, where "
                f"{self.n}:{self.m} is not supported: name {target.layer!r} in `ignore`"
            )
        if target.shape[1] % self.m:
            raise InputError(
                f"{target.name} has {target.shape[1]} inputs, which {self.n}:{self.m} does not divide: "
                f"name {target.layer!r} in `ignore`"
            )
        last = (self.m - self.n) / self.m
        for sparsity in sparsities:
            if sparsity is None:
                raise InputError(f"the shape {self.n}:{self.m} needs a schedule that states its sparsity")
            removed = sparsity * self.m
            if abs(removed - round(removed)) > 1e-9 or round(removed) > self.m - self.n:
                raise InputError(
                    f"sparsity {sparsity:g} does not fit the shape {self.n}:{self.m}: "
                    f"steps are multiples of 1/{self.m} up to {last:g}"
                )
        if round((sparsities[-1] or 0.0) * self.m) != self.m - self.n:
            raise InputError(
                f"the schedule ends at sparsity {sparsities[-1]:g}, the shape {self.n}:{self.m} at {last:g}"
            )
