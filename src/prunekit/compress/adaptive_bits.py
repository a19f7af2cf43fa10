"""Adaptive predictions of bits and of whole numbers, from what the same contexts saw before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prunekit.compress.logistic import ONE, BitCoder, Mixer, stretch


class ContextBits:
    """Bits predicted from several contexts, each a table of how often it saw ones.

    The first context is the base. What another one says beyond the base is evidence, weighed by a mixer.

    Args:
        coder: writes or reads the bits.
        sizes: the number of contexts of each kind.
        strength: how many bits the base counts for in the other tables.
    """

    def __init__(self, coder: BitCoder, sizes: Sequence[int], strength: int = 6) -> None:
        self._coder = coder
        self._ones = [np.zeros(size, np.int64) for size in sizes]
        self._all = [np.zeros(size, np.int64) for size in sizes]
        self._strength = strength
        self._mixer = Mixer([1.0] + [0.2] * (len(sizes) - 1), inertia=200)

    def forget(self) -> None:
        """Let what was seen so far count an eighth of what it did; how evidence is weighed stays."""
        for table in (*self._ones, *self._all):
            table //= 8

    def code(self, contexts: Sequence[np.ndarray], bits: np.ndarray) -> np.ndarray:
        """Bits that are predicted at once.

        Args:
            contexts: for each kind the numbers of the contexts, one for each bit.
            bits: int64, of the same length.
        """
        first, *others = contexts
        base = (2 * self._ones[0][first] + 1) * ONE // (2 * self._all[0][first] + 2)
        logits = [stretch(base)]
        for ones, seen, context in zip(self._ones[1:], self._all[1:], others, strict=True):
            found = (ones[context] * ONE + self._strength * base) // (seen[context] + self._strength)
            logits.append(stretch(found) - logits[0])
        bits = self._mixer.code(self._coder, np.stack(logits), bits)
        for ones, seen, context in zip(self._ones, self._all, contexts, strict=True):
            ones += np.bincount(context[bits > 0], minlength=len(ones))
            seen += np.bincount(context, minlength=len(seen))
        return bits


class Numbers:
    """Whole numbers from 0 to a limit, one after the other, expected near those in like surroundings.

    Args:
        coder: writes or reads them.
        limit: the greatest number.
    """

    UNIT = 1 << 20
    LIKE = 8
    """How many times more a number counts in surroundings like its own."""

    def __init__(self, coder: BitCoder, limit: int) -> None:
        self._coder = coder
        self._limit = limit
        self._mass = self.UNIT // (np.arange(limit + 1) + 1) + 1
        self._like: dict[int, np.ndarray] = {}

    def code(self, number: int, near: int = 0) -> int:
        """One number: in which half of those that are left it lies, again and again.

        Args:
            number: what to write; a decoder does not look at it.
            near: the size of its neighbours, in any unit.
        """
        like = self._like.setdefault(near.bit_length(), np.zeros_like(self._mass))
        sums = np.concatenate([[0], (self._mass + self.LIKE * like).cumsum()])
        low, high = 0, self._limit + 1
        while high - low > 1:
            middle = (low + high) // 2
            above = int((sums[high] - sums[middle]) * ONE // (sums[high] - sums[low]))
            chance = np.array([min(max(above, 1), ONE - 1)])
            if self._coder.code(chance, np.array([int(number >= middle)]))[0]:
                low = middle
            else:
                high = middle
        # the next ones are 0 again, or within about a standard deviation of a Poisson number
        reach = math.isqrt(low) + 1 if low else 0
        places = np.arange(max(low - reach, 0), min(low + reach, self._limit) + 1)
        added = self.UNIT * (reach + 1 - np.abs(places - low)) // (reach + 1)
        added[low - places[0]] += self.UNIT
        self._mass[places] += added
        like[places] += added
        return low
