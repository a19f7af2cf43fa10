"""`prunekit pack` and `prunekit unpack`: a network as one small file, and back; its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

import prunekit.cli.options as options
from prunekit import packing, saving
from prunekit.cli.networks import TRACED, is_saved, open_network
from prunekit.cli.options import only_results, print_json, table_console
from prunekit.errors import InputError, escaped
from prunekit.graph import reorder_units
from prunekit.measure import human_bytes, human_count, plain_table
from prunekit.packing.costs import Bits, LayerCost, PackedCosts, costs_of
from prunekit.parts.granularity import NM


def pack(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="File to write; one that is there is replaced.")],
    coding: Annotated[
        str, typer.Option(help="adaptive, the smallest, or published: gaps and Huffman codes.")
    ] = "adaptive",
    gap_bits: Annotated[
        int | None, typer.Option(help="Bits of a published gap, 1 to 12; else what is smallest.")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Keep the recipe and the history, too.")] = False,
    reorder: Annotated[
        bool, typer.Option("--reorder", help="Before, put units in the order that takes fewest bytes.")
    ] = False,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    outputs: options.Outputs = 10,
    tokens: options.Tokens = None,
    as_json: options.Json = False,
) -> None:
    """Write a network to one small file, to the bit.

    It is small where weights were pruned and share few values.
    Take out units that died of it before, with prunekit shrink.

    Example: prunekit pack pruned --out small.pk
    """
    if reorder and history:
        raise InputError("--history tells of units in the order that they had: leave out --reorder or it")
    with only_results():
        if is_saved(model) and weights is None and not reorder:
            contents = saving.SavedNetwork(model).files.contents()
        else:
            network = open_network(
                model, data=None, data_dir=None, weights=weights, input_shape=input_shape, outputs=outputs
            )
            masks = None if network.saved is None else network.saved.masks()
            if reorder and network.saved is not None and network.saved.prunes(NM):
                raise InputError(
                    f"{model} keeps some of every few neighbouring inputs, which another order would part: "
                    "leave out --reorder"
                )
            if reorder:
                inputs = network.examples(network.batch(None, TRACED), tokens)
                masks = reorder_units(network.model, inputs, masks=masks)
            contents = saving.contents_of(network.model, masks, network.architecture)
        packing.write_packed(contents, out, coding=coding, gap_bits=gap_bits, keep_history=history)
        costs = costs_of(out, max_bytes=None)
    if as_json:
        print_json({"file": str(out), "bytes": costs.size, "ratio": costs.ratio})
    else:
        typer.echo(f"{out}: {costs.size:,} bytes, {costs.ratio:.1f} times smaller than in float32")


def unpack(
    file: Annotated[Path, typer.Argument(help="A file that `prunekit pack` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder: new, empty, or with an earlier network.")],
    max_bytes: options.MaxBytes = None,
    as_json: options.Json = False,
) -> None:
    """Write the network of a packed file to a folder that loads.

    Example: prunekit unpack small.pk --out network
    """
    saving.check_free(out)
    saving.write_folder(packing.PackedFile(file, max_bytes=max_bytes).contents(), out)
    if as_json:
        print_json({"folder": str(out)})
    else:
        typer.echo(f'saved in {out}: prunekit.load_pretrained("{out}")')


def show_packed(path: Path, max_bytes: int | None, as_json: bool) -> None:
    """What a packed file takes, layer by layer."""
    costs = costs_of(path, max_bytes=max_bytes)
    if as_json:
        print_json(costs.to_dict())
        return
    console = Console(highlight=False)
    for line in _lines(table_console(), costs) if costs.layers else ["no weights have levels"]:
        typer.echo(line)
    console.print(
        f"P, P+Q, P+Q+H, file: bits per weight that is kept, of values + positions\n"
        f"coding: {costs.coding}\n"
        f"bytes: {costs.size:,}; {costs.values:,} of them of tensors without levels, "
        f"{costs.overhead:,.0f} of the file's own head\n"
        f"after P, P+Q, P+Q+H: "
        f"{', '.join(human_bytes(costs.staged(stage)) for stage in ('pruned', 'quantized', 'huffman'))}\n"
        f"ratio to float32: {costs.ratio:.1f} ({human_bytes(4 * costs.numbers)})"
    )


_HEADING = 2  # lines of it


def _lines(console: Console, costs: PackedCosts) -> list[str]:
    """The table; a name that is too long for its column stands in a line of its own above its row."""
    names = [escaped(layer.name.removesuffix(".weight")) for layer in costs.layers]
    least = "total"
    room = console.width - console.measure(_table(costs, [least] * len(names))).maximum + len(least)
    above = [place for place, name in enumerate(names) if cell_len(name) > room]
    beside = ["" if place in above else name for place, name in enumerate(names)]
    with console.capture() as captured:
        console.print(_table(costs, beside))
    lines = captured.get().splitlines()
    for place in reversed(above):
        lines.insert(_HEADING + place, names[place])
    return lines


def _table(costs: PackedCosts, names: Sequence[str]) -> Table:
    table = plain_table()
    table.add_column("layer", no_wrap=True)
    for heading in ("weights", "kept", "values", "P", "P+Q", "P+Q+H", "file", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer, name in zip(costs.layers, names, strict=True):
        table.add_row(Text(name), *_row([layer]), f"{layer.bytes:,.0f}")  # a string would be read as markup
    table.add_section()
    table.add_row("total", *_row(costs.layers), f"{sum(layer.bytes for layer in costs.layers):,.0f}")
    return table


def _row(layers: list[LayerCost] | tuple[LayerCost, ...]) -> list[str]:
    weights, kept = sum(layer.weights for layer in layers), sum(layer.kept for layer in layers)
    shared = f"{layers[0].shared:,}" if len(layers) == 1 else ""
    stages = ("pruned", "quantized", "huffman", "stored")
    spent = [[getattr(layer, stage) for layer in layers] for stage in stages]
    share = f"{100 * kept / weights:.1f}%" if weights else "-"
    return [human_count(weights), share, shared, *(_bits(each, kept) for each in spent)]


def _bits(spent: list[Bits], kept: int) -> str:
    if not kept:
        return "-"
    values, positions = (sum(getattr(each, what) for each in spent) for what in ("values", "positions"))
    return f"{values / kept:.1f}+{positions / kept:.1f}"
