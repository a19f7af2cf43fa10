"""The adaptive model of a mask: which weights of a matrix are there.

First come the numbers of weights in each row and in each column; empty ones cost a fraction of a bit each.
Then row by row the places, predicted from how many weights the column and the row have left, and, where
columns are laid out in a plane, from how many there are around, against how many were to be expected there.

A row is coded in few vectors. In a plane these are four interleaved grids, so that all but the first know
neighbours on all sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunekit.compress.adaptive_bits import Numbers
from prunekit.compress.logistic import ONE, BitCoder, Mixer, stretch

CHUNK = 4096
"""The most bits that are predicted at once."""

REACHES = (1, 2)
"""How far the squares reach that count as the surroundings of a place."""


class PositionModel:
    """Codes masks; what it learned of one it uses for the next.

    Args:
        coder: writes or reads bits.
    """

    def __init__(self, coder: BitCoder) -> None:
        self._coder = coder
        self._flat = Mixer([1.0], inertia=10)
        self._plane = [Mixer([1.0] + [0.2] * len(REACHES), inertia=10) for _ in range(2)]

    def code(self, present: np.ndarray, grid: tuple[int, int]) -> None:
        """Write a mask, or read one into `present`.

        Args:
            present: (rows, columns) of 0 and 1. A decoder gives zeros, which are filled in.
            grid: height and width of the plane in which the columns are laid out; height 1 is no plane.
        """
        rows, columns = present.shape
        in_rows = self._code_counts(present.sum(1, dtype=np.int64), columns, (1, rows))
        live = np.flatnonzero(in_rows)
        in_columns = self._code_counts(present.sum(0, dtype=np.int64), len(live), grid)
        parts = [places[in_columns[places] > 0] for places in _interleaved(grid)]
        parts = [part for places in parts for part in np.split(places, range(CHUNK, len(places), CHUNK))]
        squares = [_corners(places, grid) for places in parts]
        for number, row in enumerate(live):
            chances = np.minimum(in_columns * ONE // (len(live) - number), ONE)  # by its column alone
            found = present[row].astype(np.int64)
            self._code_row(found, int(in_rows[row]), chances, parts, squares, grid)
            present[row] = found
            in_columns = np.maximum(in_columns - found, 0)

    def _code_counts(self, counts: np.ndarray, most: int, grid: tuple[int, int]) -> np.ndarray:
        """The numbers of weights in rows, or in columns: differences if they never rise, else themselves.

        Args:
            counts: what to write; a decoder does not look at them.
            most: the greatest that is possible.
            grid: how rows or columns are laid out in a plane.
        """
        falling = Numbers(self._coder, 1).code(int((np.diff(counts) <= 0).all()))
        numbers = Numbers(self._coder, most)
        if falling:
            before = most
            for place, count in enumerate(counts):
                before = counts[place] = max(before - numbers.code(before - int(count)), 0)
            return counts
        plane = np.zeros((grid[0] + 1, grid[1] + 2), np.int64)
        for place, count in enumerate(counts):
            y, x = place // grid[1] + 1, place % grid[1] + 1
            if grid[0] == 1:
                near = 2 * plane[y, x - 1]
            else:
                near = (plane[y, x - 1] + plane[y - 1, x - 1 : x + 2].sum()) // 2
            counts[place] = plane[y, x] = numbers.code(int(count), int(near))
        return counts

    def _code_row(
        self,
        row: np.ndarray,
        count: int,
        chances: np.ndarray,
        parts: Sequence[np.ndarray],
        squares: Sequence[np.ndarray],
        grid: tuple[int, int],
    ) -> None:
        """Write or read one row.

        Args:
            row: int64; how many of its weights are there is `count`.
            chances: of each place by its column alone, times ONE.
            parts: places that are predicted at once.
            squares: for each part the corners of the squares around its places.
            grid: as of `code`.
        """
        places_left, chances_left = sum(map(len, parts)), int(chances.sum())
        surroundings = np.zeros((2, *grid), np.int64)  # see `_excess`
        seen, due = surroundings.reshape(2, -1)
        for number, places in enumerate(parts):
            if count <= 0 or count >= places_left:
                bits = np.full(len(places), int(count > 0))
            else:
                # the odds of the column times those of the row, over those of all places that are left
                logits = stretch(chances[places])
                logits += stretch(count * ONE // places_left) - stretch(chances_left // places_left)
                if grid[0] == 1:
                    bits = self._flat.code(self._coder, logits[None], row[places])
                else:
                    expected = np.minimum(chances[places] * count * ONE // max(chances_left, 1), ONE)
                    predictions = np.zeros((1 + len(REACHES), len(places)), np.int64)
                    predictions[0] = logits
                    if number:  # before the first part nothing is seen and nothing was due
                        predictions[1:] = _excess(surroundings, squares[number], expected)
                    bits = self._plane[min(number, 1)].code(self._coder, predictions, row[places])
                    due[places] = expected
            row[places] = bits
            seen[places] = bits
            count -= int(bits.sum())
            places_left -= len(places)
            chances_left -= int(chances[places].sum())


def _interleaved(grid: tuple[int, int]) -> list[np.ndarray]:
    """The columns in four grids of every other place in both directions; in one if there is no plane."""
    places = np.arange(grid[0] * grid[1]).reshape(grid)
    if grid[0] == 1:
        return [places.ravel()]
    return [places[y::2, x::2].ravel() for y, x in ((0, 0), (1, 1), (0, 1), (1, 0))]


def _corners(places: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The corners of the squares around places, in a table of sums of (height + 1, width + 1).

    An entry of that table is the sum of all above and left of it. The sum over a square is that at its lower
    right corner, less those at its lower left and upper right ones, plus that at its upper left one.

    Returns:
        In this order, numbered row by row: (4, reaches, places).
    """
    height, width = grid
    y, x = np.divmod(places, width)
    reaches = np.array(REACHES)[:, None]
    top, bottom = np.maximum(y - reaches, 0), np.minimum(y + reaches + 1, height)
    left, right = np.maximum(x - reaches, 0), np.minimum(x + reaches + 1, width)
    return np.stack([row * (width + 1) + column for row in (bottom, top) for column in (right, left)])


def _square_sums(planes: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Sums over the squares with these corners, of each plane: (planes, reaches, places)."""
    count, height, width = planes.shape
    table = np.zeros((count, height + 1, width + 1), planes.dtype)
    planes.cumsum(1).cumsum(2, out=table[:, 1:, 1:])
    lower_right, lower_left, upper_right, upper_left = table.reshape(count, -1)[:, corners].swapaxes(0, 1)
    return lower_right - lower_left - upper_right + upper_left


def _excess(surroundings: np.ndarray, corners: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How much the logits of expected weights change by there being more around them than were due.

    Args:
        surroundings: (2, height, width): the weights that are seen, and those that were due times ONE.
        corners: of the squares around the places.
        expected: of each place, times ONE.

    Returns:
        (reaches, places).
    """
    seen, due = _square_sums(surroundings, corners)
    return stretch((seen * ONE + ONE) * expected // (due + ONE)) - stretch(expected)
