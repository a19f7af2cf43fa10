"""The largest numbers that settings may name: beyond them a number is a slip, and would take all memory."""

from __future__ import annotations

import numbers
from typing import Any

from prunekit.errors import InputError
from prunekit.settings import shown

STEPS = 100_000
"""Steps of a pruning."""

EPOCHS = 1_000_000
"""Passes of a training over its data."""

WHOLE = 1_000_000_000
"""Of anything else that is counted: optimizer steps, examples, weights."""

LARGE = 1e30
"""The largest real number that a setting multiplies with: its square is still a number."""


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number of Python, from one of Python's or NumPy's.

    Raises:
        InputError: naming it and its range, if it is something else or outside of it.
    """
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not number or not least <= int(value) <= most:
        raise InputError(
            f"{name} = {shown(value)}: a whole number of at least {least:,} and at most {most:,} is needed"
        )
    return int(value)


def checked_seed(seed: Any) -> int:
    """A seed as a number of Python.

    Raises:
        InputError: if it is no whole number of 64 bits with a sign.
    """
    return whole("seed", seed, -(2**63), 2**63 - 1)
