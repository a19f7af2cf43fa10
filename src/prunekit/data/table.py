"""Strict reading of comma-separated tables: every row, cell and value is what the source documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit.data.reading import damaged, read_bytes

Rows = list[list[str]]


def read_rows(path: Path, *, rows: int, columns: int, header: Sequence[str] = ()) -> Rows:
    """The cells of a table, stripped of blanks.

    Args:
        path: a text file, gzipped or not, one row a line; empty lines are skipped.
        rows: how many rows there must be, the header not counted.
        columns: how many cells each row must have.
        header: the names of the columns where the file may begin with them.

    Raises:
        DataError: naming the file, what was found and what was expected, and the line where there is one.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(path, "this is not a text file") from error
    table = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != columns:
            raise damaged(path, f"line {number} has {len(cells)} columns, expected {columns}")
        table.append(cells)
    if header and table and not _is_number(table[0][0]):
        if table[0] != list(header):
            raise damaged(path, f"the columns are {', '.join(table[0])}, expected {', '.join(header)}")
        del table[0]
    if len(table) != rows:
        raise damaged(path, f"{len(table)} rows found, {rows} expected")
    return table


def numbers(path: Path, cells: Sequence[Sequence[str]], low: float, high: float) -> NDArray[np.float64]:
    """The cells as numbers, (rows, columns). Raises `DataError` for what is no number in [low, high]."""
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError as error:
        raise damaged(path, f"a value is not a number ({error})") from error
    outside = ~((values >= low) & (values <= high))  # negated so that NaN counts as outside
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise damaged(
            path,
            f"row {row + 1}, feature {column + 1} is {values[row, column]:g}, expected {low:g} to {high:g}",
        )
    return values


def labels(path: Path, cells: Sequence[str], classes: Mapping[str, int]) -> NDArray[np.int64]:
    """The number of the class that each cell names, (rows,). Raises `DataError` for an unknown name."""
    unknown = sorted(set(cells) - set(classes))
    if unknown:
        raise damaged(path, f"the class {unknown[0]!r} is none of {', '.join(classes)}")
    return np.array([classes[cell] for cell in cells], dtype=np.int64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
