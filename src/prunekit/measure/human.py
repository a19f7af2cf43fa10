"""Measured numbers as people read them, with three significant digits, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def human_bytes(count: float) -> str:
    """Bytes in decimal units, 1 MB = 10^6 bytes: "1.07 MB"."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def human_count(count: float) -> str:
    """A count in powers of a thousand: "266 k", "41.0 M"."""
    return _scaled(count, ("", "k", "M", "G", "T", "P")).rstrip()


def human_seconds(seconds: float) -> str:
    """A time from nanoseconds to seconds: "1.25 ms"."""
    if abs(seconds) >= 1 or not isfinite(seconds):
        return f"{seconds:.3g} s" if abs(seconds) < 999.5 else f"{seconds:.0f} s"
    return _scaled(seconds * 1e9, ("ns", "µs", "ms", "s"))


def _scaled(value: float, units: Sequence[str]) -> str:
    """`value` in the largest unit that leaves at least 1; whole numbers of the first unit stay whole."""
    if not isfinite(value):
        return f"{value} {units[0]}"
    scaled, place = float(value), 0
    # 999.5 would be written as 1000: it belongs to the next unit already.
    while abs(scaled) >= 999.5 and place < len(units) - 1:
        scaled, place = scaled / 1000, place + 1
    if place == 0 and scaled.is_integer():
        return f"{scaled:.0f} {units[0]}"
    digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:.{digits}f} {units[place]}"


def plain_table(**options: Any) -> Table:
    """A table without a frame, whose lines are as long as its cells."""
    from rich import box  # here, for rich takes 25 ms, and pruning measures without tables
    from rich.table import Table

    return Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, **options)
