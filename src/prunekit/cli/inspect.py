"""`prunekit inspect`: what a network is made of and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from prunekit.cli.networks import Network, Sizes, open_network
from prunekit.cli.options import DataDir, Json
from prunekit.cli.output import only_results, print_json
from prunekit.cli.quality import quality
from prunekit.data import Dataset, load
from prunekit.errors import InputError
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
from prunekit.trial import check_takes


def inspect(
    model: Annotated[
        str, typer.Argument(help="A saved folder, a model's name, module:function, or {name: mlp, ...}.")
    ],
    data: Annotated[str | None, typer.Option(help="Dataset to test on; gives the shapes too.")] = None,
    data_dir: DataDir = None,
    weights: Annotated[Path | None, typer.Option(help="Weights: safetensors, or a saved folder.")] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Shape of one example, such as 3,32,32, without a dataset.")
    ] = None,
    outputs: Annotated[
        int, typer.Option(min=1, help="Number of outputs, without a dataset, of a model that takes it.")
    ] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Examples per pass of latency and memory.")] = 1,
    as_json: Json = False,
) -> None:
    """Show a network layer by layer: parameters, zeros, MACs, and its latency and memory.

    Example: prunekit inspect resnet20 --input-shape 3,32,32
    """
    with only_results():
        found = None if data is None else load(data, data_dir)
        sizes = None if input_shape is None else Sizes(_shape(input_shape), outputs)
        network = open_network(model, data=found, sizes=sizes, weights=weights)
        example = torch.zeros(batch, *_example_shape(network, found, sizes))
        check_takes(network.model, model, example)
        counts = count(network.model, example)
        timing = latency(network.model, example)
        memory = peak_memory(network.model, example)
        figures = quality(network.model, found)
    if as_json:
        times = {"median": timing.median, "p10": timing.p10, "p90": timing.p90, "batch": batch}
        print_json({**counts.to_dict(), "latency": times, "peak_memory": memory, **figures})
    else:
        _show(counts, timing, memory, figures, batch)


def _example_shape(network: Network, data: Dataset | None, sizes: Sizes | None) -> tuple[int, ...]:
    for known in (data, sizes, network.architecture):
        if known is not None:
            return known.input_shape
    raise InputError("the shape of an example is not known: add --data or --input-shape")


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


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--input-shape {text!r}: write whole numbers joined by commas, such as 3,32,32")
    return shape
