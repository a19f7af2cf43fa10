"""Measured numbers as people read them: three significant digits, and a table of layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from prunekit.errors import escaped

if TYPE_CHECKING:
    from prunekit.measure.counts import Counts, LayerCount


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
    return Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, **options)


# These leave room for the numbers in 80 columns: kinds are cut, shapes folded, and names as far as needed.
_KIND_WIDTH = 11
_SHAPE_WIDTH = 11
_NAME_LEAST = 12


def layer_table(counts: Counts) -> Table:
    """One line for each layer and one for the totals, made for 80 columns; below it sparsity and ratio.

    `kept` is the share of parameters, and of MACs, that is not zero.
    """
    table = plain_table(show_footer=True, caption=_caption(counts), caption_justify="left")
    longest = max((len(_name(layer)) for layer in counts.layers), default=0)
    table.add_column("layer", footer="total", overflow="fold", min_width=min(longest, _NAME_LEAST))
    table.add_column("kind", overflow="ellipsis", no_wrap=True, max_width=_KIND_WIDTH)
    table.add_column("weight", overflow="fold", max_width=_SHAPE_WIDTH)
    for heading, footer in (
        ("parameters", f"{counts.parameters:,}"),
        ("kept", _share(counts.nonzeros, counts.parameters)),
        ("MACs", human_count(counts.macs)),
        ("kept", _share(counts.macs_nonzero, counts.macs)),
    ):
        table.add_column(heading, footer=footer, justify="right", no_wrap=True, min_width=len(footer))
    for layer in counts.layers:
        table.add_row(
            Text(_name(layer)),  # a string would be read as markup
            Text(escaped(layer.kind)),
            Text(escaped(f"= {layer.tied_to}")) if layer.tied_to else "x".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            _share(layer.nonzeros, layer.parameters),
            human_count(layer.macs),
            _share(layer.macs_nonzero, layer.macs),
        )
    return table


def _name(layer: LayerCount) -> str:
    return escaped(layer.name) or "(model)"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _caption(counts: Counts) -> str:
    return (
        f"sparsity {100 * counts.sparsity:.2f}%, compression ratio {counts.compression_ratio:.2f}x\n"
        f"{counts.nonzeros:,} of {counts.parameters:,} parameters are not zero\n"
        f"{human_bytes(counts.bytes)} stored densely"
    )
