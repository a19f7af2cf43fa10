"""Planes in which the inputs of a matrix lie: pixels of an image, channels x places behind a flattening."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prunekit.compress import encode_levels

Plane = tuple[int, int]

TRIED = 1 << 21
"""Up to how many levels all planes are tried."""


def plane_of(levels: np.ndarray, input_shape: Sequence[int] | None, channels: Sequence[int]) -> Plane | None:
    """The plane in which the inputs of a matrix are coded in least bytes; None for none.

    Args:
        levels: int, (outputs, inputs).
        input_shape: of an example, if it is known.
        channels: of the convolutions before it; the last is looked at first.
    """
    inputs = levels.shape[1]
    found: list[Plane] = []
    if input_shape is not None and len(input_shape) > 1 and math.prod(input_shape) == inputs:
        found.append((inputs // input_shape[-1], input_shape[-1]))
    found += [
        (each, inputs // each)
        for each in dict.fromkeys(reversed(channels))
        if 1 < each < inputs and inputs % each == 0
    ]
    side = math.isqrt(inputs)
    if not found and side * side == inputs and side >= 8:
        found.append((side, side))
    if levels.size > TRIED:
        return found[0] if found else None
    options: list[Plane | None] = [None, *dict.fromkeys(found[:2])]
    return min(options, key=lambda plane: len(encode_levels([levels], [plane]))) if found else None
