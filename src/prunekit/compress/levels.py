"""The adaptive model of shared values: sign and magnitude of the weights that a mask says are there.

They are coded in an order that jumps over rows and columns, so that soon something is known of each of them
and of every neighbourhood. The more is known the more are coded at once.
"""

from __future__ import annotations

import numpy as np

from prunekit.compress.adaptive_bits import ContextBits
from prunekit.compress.logistic import BitCoder
from prunekit.compress.positions import CHUNK

BLOCK = 1 << 20
"""How many weights the order jumps over at most."""

MEANS = 8  # classes of a mean magnitude
COUNTS = 8  # classes of a number of weights


class LevelModel:
    """Codes signs and magnitudes of layers; what it learned of one it uses for the next.

    Args:
        coder: writes or reads bits.
    """

    def __init__(self, coder: BitCoder) -> None:
        self._coder = coder
        self._signs = ContextBits(coder, [1, 7, 7, 9])
        self._magnitudes: dict[int, ContextBits] = {}

    def code(
        self, levels: np.ndarray, present: np.ndarray, lowest: int, highest: int, grid: tuple[int, int]
    ) -> None:
        """Write the levels of a layer, or read them into `levels`.

        Args:
            levels: int32, (rows, columns).
            present: which of them are not 0, of the same shape.
            lowest, highest: the greatest magnitudes of negative and of positive levels.
            grid: height and width of the plane in which the columns are laid out.
        """
        for tables in (self._signs, *self._magnitudes.values()):
            tables.forget()
        places = np.flatnonzero(present)
        known = _Known(present, max(lowest, highest, 1), grid)
        digits = max(lowest - 1, highest - 1, 0).bit_length()
        done = 0
        for start in range(0, len(places), BLOCK):
            block = places[start : start + BLOCK]
            block = block[_spread(len(block))]
            at = 0
            while at < len(block):
                part = block[at : at + min(max(16, done // 8), CHUNK)]
                at, done = at + len(part), done + len(part)
                row, column = np.divmod(part, levels.shape[1])
                found = self._code_part(levels[row, column], row, column, lowest, highest, digits, known)
                levels[row, column] = found
                known.add(row, column, found)

    def _code_part(
        self,
        levels: np.ndarray,
        row: np.ndarray,
        column: np.ndarray,
        lowest: int,
        highest: int,
        digits: int,
        known: _Known,
    ) -> np.ndarray:
        """The levels at these places, which are predicted at once."""
        around = known.around(row, column)
        positive = np.full(len(row), int(lowest == 0))
        if lowest and highest:
            positive = self._signs.code(known.of_signs(row, column, around), (levels > 0).astype(np.int64))
        contexts = [positive, *known.of_magnitudes(row, column, around)]
        nodes = 1 << digits
        if digits not in self._magnitudes:
            kinds = (2, MEANS, MEANS, MEANS, COUNTS, COUNTS)
            self._magnitudes[digits] = ContextBits(self._coder, [kind * nodes for kind in kinds])
        most = np.where(positive, highest, lowest) - 1
        # the magnitude less one, digit by digit from the highest: node 1, then 2 or 3, then 4 to 7, ...
        rest, node = np.abs(levels.astype(np.int64)) - 1, np.ones(len(row), np.int64)
        for place in range(digits - 1, -1, -1):
            bit = np.zeros(len(row), np.int64)
            free = ((2 * node + 1) << place) - nodes <= most  # where a 1 is possible
            if free.any():
                bit[free] = self._magnitudes[digits].code(
                    [context[free] * nodes + node[free] for context in contexts], rest[free] >> place & 1
                )
            node = 2 * node + bit
        return np.where(positive, 1, -1) * (node - nodes + 1)


class _Known:
    """What is known of a layer's levels so far: sums over rows and columns, and the levels themselves."""

    def __init__(self, present: np.ndarray, scale: int, grid: tuple[int, int]) -> None:
        self._scale = scale
        self._grid = grid
        self._levels = np.zeros(present.shape, np.int16)
        self._sizes = [_class_of_count(present.sum(axis, dtype=np.int64)) for axis in (1, 0)]
        # for rows and for columns: signs added up, magnitudes added up, how many
        self._sums = [np.zeros((3, size), np.int64) for size in present.shape]

    def around(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The levels left, right, above and below in the plane; 0 where none is known. (4, places)."""
        height, width = self._grid
        y, x = np.divmod(column, width)
        found = []
        for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0)):
            inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
            found.append(self._levels[row, np.where(inside, column + dy * width + dx, column)])
        return np.stack(found).astype(np.int64)  # a place itself is not known yet, and so 0

    def of_signs(self, row: np.ndarray, column: np.ndarray, around: np.ndarray) -> list[np.ndarray]:
        """Contexts of signs: none, the balance of the row, of the column, of the neighbours."""
        balances = [
            np.clip(sums[0, where], -3, 3) + 3 for sums, where in zip(self._sums, (row, column), strict=True)
        ]
        return [np.zeros_like(row), *balances, np.sign(around).sum(0) + 4]

    def of_magnitudes(self, row: np.ndarray, column: np.ndarray, around: np.ndarray) -> list[np.ndarray]:
        """Contexts of magnitudes: means of row, column, neighbours; numbers of weights in row, column."""
        return [
            self._class_of_mean(self._sums[0][1, row], self._sums[0][2, row]),
            self._class_of_mean(self._sums[1][1, column], self._sums[1][2, column]),
            self._class_of_mean(np.abs(around).sum(0), (around != 0).sum(0)),
            self._sizes[0][row],
            self._sizes[1][column],
        ]

    def add(self, row: np.ndarray, column: np.ndarray, levels: np.ndarray) -> None:
        """Take note of levels."""
        self._levels[row, column] = levels
        for sums, where in zip(self._sums, (row, column), strict=True):
            for number, values in enumerate((np.sign(levels), np.abs(levels), 1)):
                np.add.at(sums[number], where, values)

    def _class_of_mean(self, total: np.ndarray, count: np.ndarray) -> np.ndarray:
        """0 where there is none, else from 1 to 7."""
        share = total * (MEANS - 1) // (np.maximum(count, 1) * self._scale)
        return np.where(count > 0, np.minimum(share, MEANS - 2) + 1, 0)


def _class_of_count(counts: np.ndarray) -> np.ndarray:
    """The number of binary digits, at most 7."""
    return np.searchsorted(1 << np.arange(COUNTS - 1), counts, side="right")


def _spread(count: int) -> np.ndarray:
    """The numbers below count in the order of their reversed binary digits: 0, 4, 2, 6, 1, 5, 3, 7."""
    order = np.zeros(1, np.int64)
    while len(order) < count:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order[order < count]
