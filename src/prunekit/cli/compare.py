"""`prunekit methods`, `compare` and `report`: what can be compared, a study of it, and a look at one."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import prunekit.cli.options as options
from prunekit.cli.options import StoppedError, only_results, own_code, print_json, table_console
from prunekit.errors import InputError, plain_line
from prunekit.measure import plain_table
from prunekit.methods import METHODS, MethodInfo, describe, recipe
from prunekit.study import Executor, LocalPool, RayCluster, load_study, names, run_study
from prunekit.study_files import STUDY_JSON

ExecutorName = Literal["local", "ray"]


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
            _show_method(describe(name), chosen.to_yaml())
        return
    rows = [describe(method) for method in METHODS]
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table_console().print(_methods_table(rows))


def _show_method(info: MethodInfo, text: str) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{info.name}[/bold]  {escape(info.summary)}")
    if info.paper:
        console.print(f"[dim]{escape(info.paper)}[/dim]")
    settings = ", ".join(f"{key}={value}" for key, value in info.settings.items())
    console.print(f"\nSettings: {settings}\nIts recipe, as YAML:\n", soft_wrap=True)
    typer.echo(text, nl=False)


def _methods_table(rows: list[MethodInfo]) -> Table:
    table = plain_table()
    table.add_column("method", style="bold", no_wrap=True)
    table.add_column("what it does", ratio=1)
    table.add_column("needs", style="dim", max_width=12)
    for row in rows:
        paper = f"\n[dim]{escape(row.paper)}[/dim]" if row.paper else ""
        table.add_row(row.name, escape(row.summary) + paper, ", ".join(row.needs) or "-")
    return table


def compare(
    study: Annotated[str | None, typer.Argument(help="A named study, or a path ending in .yaml.")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Folder of the results, runs/NAME by default, or a URL such as s3://bucket/NAME; an earlier "
            "run there goes on.",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one per core by default.")] = None,
    cell_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="End a cell or training that takes longer; it counts as failed."
        ),
    ] = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="Who runs the cells: processes of this machine, or a Ray cluster.")
    ] = "local",
    attempts: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Begin a cell so often if its process or machine dies; 1, and 3 with Ray."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster; auto for the one on this machine. One is made by default."),
    ] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs that a cell takes on Ray; 1 by default.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs that a cell takes on Ray; 0 by default.")] = None,
    memory: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Memory that Ray sets aside for a cell.")
    ] = None,
    assignments: options.SetOption = None,
    allow: options.Allow = None,
    list_studies: Annotated[bool, typer.Option("--list", help="List the named studies.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compare pruning methods: several recipes, several seeds, one report.

    Example: prunekit compare digits-quick --seeds 5 --set training.epochs=20
    """
    if list_studies:
        _list_studies(as_json)
        return
    if study is None:
        raise InputError("name a study of `prunekit compare --list`, or a path ending in .yaml")
    changes = list(assignments or []) + ([] if seeds is None else [f"seeds={seeds}"])
    with own_code(allow):
        chosen = load_study(study, changes)
    folder = str(Path("runs") / chosen.name) if out is None else out
    on_ray = {"address": address, "cpus": cpus, "gpus": gpus, "memory": memory}
    runs = _executor(executor, workers, attempts, on_ray)
    words = ["prunekit", "compare", study]
    words += [word for module in allow or () for word in ("--allow", module)]
    words += [word for change in changes for word in ("--set", change)]
    try:
        with only_results():
            page = run_study(
                chosen,
                folder,
                data_dir=data_dir,
                executor=runs,
                cell_timeout=cell_timeout,
                command=shlex.join(words),
            )
    except KeyboardInterrupt:
        raise StoppedError("stopped; the same command goes on from here") from None
    _show_findings(page, as_json)


def _executor(
    name: ExecutorName, workers: int | None, attempts: int | None, on_ray: dict[str, Any]
) -> Executor:
    tries: dict[str, Any] = {} if attempts is None else {"attempts": attempts}
    given: dict[str, Any] = {key: value for key, value in on_ray.items() if value is not None}
    if name == "ray":
        if workers is not None:
            raise InputError("--workers are processes of this machine: give --cpus with --executor ray")
        return RayCluster(**given, **tries)
    if given:
        raise InputError(f"--{next(iter(given))} is for --executor ray")
    return LocalPool(workers, **tries)


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a study's results.")],
    as_json: options.Json = False,
) -> None:
    """Make the figures and the page of a study anew from its tables.

    Example: prunekit report runs/digits-quick
    """
    from prunekit.report import is_suite, write_report, write_suite_reports  # matplotlib takes long

    if is_suite(folder):
        _show_findings(write_suite_reports(folder), as_json)
        return
    if not (folder / STUDY_JSON).is_file():
        raise InputError(f"{folder} holds no study: there is no {STUDY_JSON}")
    _show_findings(write_report(folder), as_json)


def _show_findings(page: Path, as_json: bool) -> None:
    from prunekit.report import overview

    found = overview(page.parent)
    if as_json:
        print_json({"report": str(page), **found.to_dict()})
        return
    console = Console(highlight=False)
    console.print(f"\n[bold]{escape(plain_line(found.title))}[/bold]")
    for finding in found.findings:
        console.print(f"- {escape(plain_line(str(finding)))}")
    console.print("\nThe report:")
    typer.echo(str(page))


def _list_studies(as_json: bool) -> None:
    studies = [load_study(name) for name in names()]
    if as_json:
        print_json(
            [{"name": s.name, "title": s.title, "cells": len(s.cells), "seeds": s.seeds} for s in studies]
        )
        return
    width = max(len(study.name) for study in studies)
    for study in studies:
        typer.echo(f"{study.name:<{width}}  {study.title} ({len(study.cells)} recipes x {study.seeds} seeds)")
