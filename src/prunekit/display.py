"""How results are shown: a line in lists and errors, a short text when printed, the same in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

MOST_ROWS = 20
"""Rows that are printed of a longer list."""


class Displayed:
    """Something that a notebook shows as it is printed."""

    def _repr_html_(self) -> str:
        """The text, for Jupyter."""
        return f"<pre>{escape(str(self))}</pre>"


def some_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of one width, those to the right of the first flush right where they are numbers."""
    shown = rows[:MOST_ROWS]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)] if shown else []
    lines = [
        "  ".join(
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in shown
    ]
    more = len(rows) - len(shown)
    return [*lines, f"... and {more:,} more"] if more else lines
