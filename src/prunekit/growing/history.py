"""What was seen at each number of hidden units, and the smallest number that reaches an error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from prunekit.errors import InputError


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
