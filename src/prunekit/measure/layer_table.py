"""The table of a network's layers in a terminal: parameters and MACs, and what is left of both."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from prunekit.errors import escaped
from prunekit.measure.counts import Counts, LayerCount
from prunekit.measure.human import human_bytes, human_count, plain_table

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
