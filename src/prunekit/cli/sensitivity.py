"""`prunekit sensitivity`: which layers of a network bear pruning, each tried alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

import prunekit.cli.options as options
from prunekit.cli.networks import open_network
from prunekit.cli.options import only_results, own_code, print_json, table_console
from prunekit.errors import InputError, escaped, shown
from prunekit.files import file_to_write
from prunekit.measure import plain_table
from prunekit.parts.allocation import GRID
from prunekit.pruning import SensitivityCurves, Session
from prunekit.recipe import Recipe

_IMAGES = (".pdf", ".png", ".svg")


def sensitivity(
    model: options.Model,
    data: Annotated[
        str, typer.Option(help="Dataset, or module:function: the loss is that on its training part.")
    ],
    data_dir: options.DataDir = None,
    weights: options.Weights = None,
    score: Annotated[str, typer.Option(help="What goes first in a layer.")] = "magnitude",
    granularity: Annotated[str, typer.Option(help="weight, unit or block.")] = "weight",
    ignore: options.Ignore = None,
    sparsities: Annotated[
        str, typer.Option(help="At which each layer is tried, joined by commas.")
    ] = ",".join(map(str, GRID)),
    csv: Annotated[Path | None, typer.Option(help="File for the table.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for the curves: .png, .svg or .pdf.")] = None,
    allow: options.Allow = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Show the loss where one layer alone is pruned, at several sparsities.

    Example: prunekit sensitivity small --data digits --plot curves.png
    """
    tried = _numbers(sparsities)
    if plot is not None and plot.suffix not in _IMAGES:
        raise InputError(f"--plot {shown(str(plot))}: the name must end in {', '.join(_IMAGES)}")
    with own_code(allow):
        recipe = Recipe.parse(
            {
                "score": score,
                "granularity": granularity,
                "ignore": ignore or (),
                "allocation": "none",
                "schedule": "allocation_decides",
            }
        )
    with only_results():
        network = open_network(model, data=data, data_dir=data_dir, weights=weights, seed=seed)
        assert network.data is not None
        session = Session(network.model, recipe, data=network.data.train, seed=seed)
        found = session.sensitivity(tried)
        if csv is not None:
            found.to_csv(csv)
        if plot is not None:
            found.plot().savefig(file_to_write(plot))
    if as_json:
        print_json({"metric": found.metric, "dense": found.dense, "rows": found.to_rows()})
    else:
        _show(found)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise InputError(f"--sparsities {shown(text)}: write numbers joined by commas, as 0.5,0.9") from None


def _show(found: SensitivityCurves) -> None:
    table, ((layer, *headings), *rows) = plain_table(), found.to_table()
    table.add_column(layer, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, *cells in rows:
        table.add_row(Text(escaped(name)), *cells)
    table_console().print(table)
    typer.echo(f"{found.metric} of the dense network: {found.dense:.4g}")
