"""`prunekit inspect`: what a network is made of and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prunekit.cli.examples import TRACED, InputShape, Outputs, Tokens, batch_of, examples, sizes_of
from prunekit.cli.groups import groups_table
from prunekit.cli.networks import open_network
from prunekit.cli.options import DataDir, Json
from prunekit.cli.output import only_results, print_json
from prunekit.cli.quality import quality
from prunekit.data import load
from prunekit.errors import InputError
from prunekit.graph import Plan, parameters_per_unit
from prunekit.graph import groups as coupled
from prunekit.measure import (
    Counts,
    Latency,
    count,
    human_bytes,
    human_seconds,
    latency,
    layer_table,
    peak_memory,
)


def inspect(
    model: Annotated[
        str, typer.Argument(help="A saved folder, a model's name, module:function, or {name: mlp, ...}.")
    ],
    data: Annotated[str | None, typer.Option(help="Dataset to test on; gives the shapes too.")] = None,
    data_dir: DataDir = None,
    weights: Annotated[Path | None, typer.Option(help="Weights: safetensors, or a saved folder.")] = None,
    input_shape: InputShape = None,
    outputs: Outputs = 10,
    tokens: Tokens = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Examples per pass of latency and memory; else one.")
    ] = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="Show what is coupled and can be taken out, instead.")
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="With --groups: a layer, or pattern, that keeps its sizes; may be repeated."),
    ] = None,
    residual: Annotated[
        bool, typer.Option("--residual", help="With --groups: let residual streams lose units, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a network layer by layer: parameters, zeros, MACs, and its latency and memory.

    With --groups: the units that can be taken out, with everything that goes with
    them, and what has to stay, with the reason.

    Example: prunekit inspect resnet20 --input-shape 3,32,32
    """
    if not groups and (ignore or residual):
        raise InputError("--ignore and --residual say what can be taken out: add --groups")
    with only_results():
        found = None if data is None else load(data, data_dir)
        sizes = sizes_of(input_shape, outputs)
        network = open_network(model, data=found, sizes=sizes, weights=weights)
        batch = batch_of(network, batch, TRACED if groups else 1)
        example = examples(network, model, found, sizes, batch=batch, tokens=tokens)
        plan = coupled(network.model, example, ignore=ignore or (), residual=residual) if groups else None
    if plan is not None:
        _show_plan(plan, parameters_per_unit(network.model, plan), as_json)
        return
    with only_results():
        counts = count(network.model, example)
        timing = latency(network.model, example)
        memory = peak_memory(network.model, example)
        figures = quality(network.model, found)
    if as_json:
        times = {"median": timing.median, "p10": timing.p10, "p90": timing.p90, "batch": batch}
        print_json({**counts.to_dict(), "latency": times, "peak_memory": memory, **figures})
    else:
        _show(counts, timing, memory, figures, batch)


def _show_plan(plan: Plan, each: dict[str, float], as_json: bool) -> None:
    if as_json:
        found = plan.to_dict()["groups"]
        print_json({"groups": [{**group, "parameters_per_unit": each[group["name"]]} for group in found]})
    else:
        Console(highlight=False).print(groups_table(plan, each), soft_wrap=False)


def _show(counts: Counts, timing: Latency, memory: int, figures: dict[str, float], batch: int) -> None:
    console = Console(highlight=False)
    console.print(layer_table(counts))
    console.print(
        f"latency: {human_seconds(timing.median)} median, {human_seconds(timing.p10)} to "
        f"{human_seconds(timing.p90)} (batch {batch}, one thread)\n"
        f"memory: {human_bytes(counts.bytes)} of weights, {human_bytes(memory)} at the peak of a pass"
    )
    for key, value in figures.items():
        console.print(f"{key.replace('_', ' ')}: {value:.4f}")
