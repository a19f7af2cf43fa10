"""`prunekit inspect`: what a network is made of and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from prunekit.cli.networks import open_network
from prunekit.cli.options import DataDir, Json
from prunekit.data import load
from prunekit.errors import InputError
from prunekit.measure import count, evaluate, human_bytes, human_seconds, latency, layer_table, peak_memory


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
    batch: Annotated[int, typer.Option(min=1, help="Examples per pass of latency and memory.")] = 1,
    as_json: Json = False,
) -> None:
    """Show a network layer by layer: parameters, zeros, MACs, and its latency and memory.

    Example: prunekit inspect runs/digits-quick/cells/*/seed-0/model
    """
    found = None if data is None else load(data, data_dir)
    shape = None if input_shape is None else _shape(input_shape)
    network = open_network(model, data=found, input_shape=shape, weights=weights)
    if found is not None:
        shape = found.input_shape
    elif network.architecture is not None and shape is None:
        shape = network.architecture.input_shape
    if shape is None:
        raise InputError("the shape of an example is not known: add --data or --input-shape")
    example = torch.zeros(batch, *shape)
    counts = count(network.model, example)
    timing = latency(network.model, example)
    memory = peak_memory(network.model, example)
    quality: dict[str, Any] = {}
    if found is not None:
        measured = evaluate(network.model, found.test.inputs, found.test.targets, task=found.task)
        quality = {
            "test_accuracy": measured.accuracy,
            "test_top5": measured.top5,
            "test_loss": measured.loss,
            "test_mse": measured.mse,
        }
    if as_json:
        typer.echo(
            json.dumps(
                {
                    **counts.to_dict(),
                    "latency": {
                        "median": timing.median,
                        "p10": timing.p10,
                        "p90": timing.p90,
                        "batch": batch,
                    },
                    "peak_memory": memory,
                    **quality,
                },
                indent=1,
            )
        )
        return
    console = Console(highlight=False)
    console.print(layer_table(counts))
    console.print(
        f"latency: {human_seconds(timing.median)} median, {human_seconds(timing.p10)} to "
        f"{human_seconds(timing.p90)} (batch {batch}, one thread)\n"
        f"memory: {human_bytes(counts.bytes)} of weights, {human_bytes(memory)} at the peak of a pass"
    )
    for key, value in quality.items():
        if value is not None:
            console.print(f"{key.replace('_', ' ')}: {value:.4f}")


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--input-shape {text!r}: write whole numbers joined by commas, such as 3,32,32")
    return shape
