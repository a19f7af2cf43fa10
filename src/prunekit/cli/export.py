"""`prunekit export`: a network as a file for other programs, compared with PyTorch before it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

import prunekit.cli.options as options
from prunekit.cli.networks import TRACED, open_network
from prunekit.cli.options import only_results, print_json
from prunekit.errors import InputError, instead
from prunekit.export import (
    Exported,
    export_c,
    export_executorch,
    export_onnx,
    export_program,
    export_safetensors,
)

_FORMS: Mapping[str, Callable[..., Exported]] = MappingProxyType(
    {"onnx": export_onnx, "torch": export_program, "executorch": export_executorch, "c": export_c}
)


def export(
    model: options.Model,
    to: Annotated[str, typer.Option(help="onnx, torch, executorch, c or safetensors.")],
    out: Annotated[Path, typer.Option(help="File to write; one that is there is replaced.")],
    data: options.Data = None,
    data_dir: options.DataDir = None,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    outputs: options.Outputs = 10,
    tokens: options.Tokens = None,
    huffman: Annotated[bool, typer.Option("--huffman", help="For c: fewer bytes, more time.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a network as a file for other programs, compared with PyTorch.

    Example: prunekit export small --to onnx --out small.onnx
    """
    if to not in (known := [*_FORMS, "safetensors"]):
        raise InputError(f"--to {to}: there is no such form{instead(to, known)}")
    if huffman and to != "c":
        raise InputError(f"--huffman goes with --to c, not with --to {to}")
    with only_results():
        network = open_network(
            model, data=data, data_dir=data_dir, weights=weights, input_shape=input_shape, outputs=outputs
        )
        if to == "safetensors":
            done = export_safetensors(network.model, out)
        else:
            more = {"huffman": True} if huffman else {}
            inputs = network.examples(network.batch(None, TRACED), tokens)
            done = _FORMS[to](network.model, out, inputs, **more)
    size = done.path.stat().st_size
    if as_json:
        print_json({"file": str(done.path), "bytes": size, "deviation": done.deviation})
        return
    compared = "" if done.deviation is None else f", differs from PyTorch by at most {done.deviation:.1e}"
    typer.echo(f"{done.path}: {size:,} bytes{compared}")
