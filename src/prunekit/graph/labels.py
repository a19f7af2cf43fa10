"""Integer labels for the entries of axes, and which of them go together.

Every entry of every axis of a parameter has a label of its own. Propagation through the network moves the
labels along with the data; where two labels meet, they are joined. Label 0 is the entry that cannot be taken
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Classes:
    """The labels after joining: `root[label]` names its class, `reason[root]` why a class is frozen."""

    root: Ints
    reason: dict[int, str]


class Labels:
    """Labels given out so far, the pairs that go together, and what froze some of them."""

    def __init__(self) -> None:
        self.count = 1
        self._pairs: list[tuple[Ints, Ints]] = []
        self._frozen: list[tuple[Ints, str]] = []

    def new(self, size: int) -> Ints:
        """Labels for `size` entries that nothing else has."""
        start = self.count
        self.count += size
        return np.arange(start, self.count, dtype=np.int64)

    def freeze(self, labels: Ints | None, reason: str) -> None:
        """Nothing that has one of these labels can be taken out."""
        if labels is not None:
            alive = labels[labels > 0].ravel()
            if alive.size:
                self._frozen.append((alive, reason))

    def join(self, first: Ints | None, second: Ints | None, reason: str) -> Ints | None:
        """Labels of an axis where two axes meet entry by entry; None is an axis that cannot change.

        Where one entry cannot be taken out, the other is frozen for the reason given.
        """
        if first is None or second is None:
            self.freeze(first, reason)
            self.freeze(second, reason)
            return None
        first, second = np.broadcast_arrays(first, second)
        differ = first != second
        if not differ.any():
            return first
        self.freeze(first[differ & (second == 0)], reason)
        self.freeze(second[differ & (first == 0)], reason)
        both = differ & (first > 0) & (second > 0)
        if both.any():
            self._pairs.append((first[both], second[both]))
        return np.where(second == 0, 0, first)

    def classes(self) -> Classes:
        """The connected components of all labels given out."""
        root = np.arange(self.count, dtype=np.int64)
        if self._pairs:
            first = np.concatenate([pair[0] for pair in self._pairs])
            second = np.concatenate([pair[1] for pair in self._pairs])
            root = connected(root, first, second)
        reason: dict[int, str] = {}
        for labels, why in self._frozen:
            for found in np.unique(root[labels]).tolist():
                reason.setdefault(found, why)
        return Classes(root, reason)


def connected(root: Ints, first: Ints, second: Ints) -> Ints:
    """The smallest label of each connected component, by hooking and pointer jumping on whole arrays.

    Args:
        root: (labels,) the labels themselves, 0, 1, 2, ...
        first: (pairs,) one end of each pair.
        second: (pairs,) the other.

    Shiloach & Vishkin 1982, An O(log n) parallel connectivity algorithm.
    """
    root = root.copy()
    while True:
        low, high = root[first], root[second]
        open_pairs = low != high
        if not open_pairs.any():
            return root
        first, second = first[open_pairs], second[open_pairs]
        low, high = low[open_pairs], high[open_pairs]
        np.minimum.at(root, np.maximum(low, high), np.minimum(low, high))
        while True:
            jumped = root[root]
            if np.array_equal(jumped, root):
                break
            root = jumped


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
