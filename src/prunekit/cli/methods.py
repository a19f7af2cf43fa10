"""`prunekit methods`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prunekit.cli import options
from prunekit.cli.options import print_json
from prunekit.measure import plain_table
from prunekit.methods import METHODS, MethodInfo, describe, recipe


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to see its recipe and settings.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the methods with their papers, or show one as a recipe.

    Example: prunekit methods lottery_ticket
    """
    if name is not None:
        chosen = recipe(name)
        if as_json:
            print_json({**asdict(describe(name)), "recipe": chosen.to_dict()})
        else:
            _show(describe(name), chosen.to_yaml())
        return
    rows = [describe(method) for method in METHODS]
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    Console().print(_table(rows))


def _show(info: MethodInfo, text: str) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{info.name}[/bold]  {escape(info.summary)}")
    if info.paper:
        console.print(f"[dim]{escape(info.paper)}[/dim]")
    settings = ", ".join(f"{key}={value}" for key, value in info.settings.items())
    console.print(f"\nSettings: {settings}\nIts recipe, as YAML:\n", soft_wrap=True)
    typer.echo(text, nl=False)


def _table(rows: list[MethodInfo]) -> Table:
    table = plain_table()
    table.add_column("method", style="bold", no_wrap=True)
    table.add_column("what it does", ratio=1)
    table.add_column("needs", style="dim", max_width=12)
    for row in rows:
        paper = f"\n[dim]{escape(row.paper)}[/dim]" if row.paper else ""
        table.add_row(row.name, escape(row.summary) + paper, ", ".join(row.needs) or "-")
    return table
