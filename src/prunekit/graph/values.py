"""What is known of a tensor while the network is walked through: its axes with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prunekit.graph.labels import Ints


class Dim(NamedTuple):
    """One axis of one tensor.

    Attributes:
        size: how many entries it has.
        labels: (size,) label of each entry; None where none can be taken out.
        zero: whether the entries are zero once the slices of the parameters with the same labels are zero.
        origin: the parameter and its axis, where the axis is that of a parameter.
    """

    size: int
    labels: Ints | None = None
    zero: bool = False
    origin: tuple[str, int] | None = None


Value = tuple[Dim, ...]


def fixed(shape: Sequence[int]) -> Value:
    """A tensor with no entry that can be taken out."""
    return tuple(Dim(int(size)) for size in shape)


def position(dim: int, rank: int) -> int:
    """An axis counted from the front."""
    return dim % rank if rank else 0
