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
        known, found = self._strength * base, np.empty((len(contexts), len(bits)), np.int64)
        found[0] = base
        tables = zip(self._ones[1:], self._all[1:], others, strict=True)
        for number, (ones, seen, context) in enumerate(tables, start=1):
            found[number] = (ones[context] * ONE + known) // (seen[context] + self._strength)
        logits = stretch(found)
        logits[1:] -= logits[0]
        bits = self._mixer.code(self._coder, logits, bits)
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
        self._sums = np.zeros(limit + 2, np.int64)
        self._like: dict[int, np.ndarray] = {}

    def code(self, number: int, near: int = 0) -> int:
        """One number: in which half of those that are left it lies, again and again.

        Args:
            number: what to write; a decoder does not look at it.
            near: the size of its neighbours, in any unit.
        """
        surroundings = near.bit_length()
        if surroundings not in self._like:
            self._like[surroundings] = np.zeros_like(self._mass)
        like, sums = self._like[surroundings], self._sums
        np.cumsum(self._mass + self.LIKE * like, out=sums[1:])
        low, high = 0, self._limit + 1
        to_low, to_high = 0, sums.item(high)
        while high - low > 1:
            middle = (low + high) // 2
            to_middle = sums.item(middle)
            above = (to_high - to_middle) * ONE // (to_high - to_low)
            if self._coder.code_one(min(max(above, 1), ONE - 1), int(number >= middle)):
                low, to_low = middle, to_middle
            else:
                high, to_high = middle, to_middle
        # the next ones are 0 again, or within about a standard deviation of a Poisson number
        reach = math.isqrt(low) + 1 if low else 0
        first, end = max(low - reach, 0), min(low + reach, self._limit) + 1
        added = self.UNIT * (reach + 1 - np.abs(np.arange(first - low, end - low))) // (reach + 1)
        added[low - first] += self.UNIT
        self._mass[first:end] += added
        like[first:end] += added
        return low
