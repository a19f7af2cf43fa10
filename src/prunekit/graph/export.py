"""A network's graph, as `torch.export` gives it."""

from __future__ import annotations

import inspect
import io
import logging
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from prunekit.errors import ModelError
from prunekit.graph.captured import Captured
from prunekit.modes import untouched

_INPUTS = {InputKind.PARAMETER: "tensor", InputKind.BUFFER: "tensor", InputKind.USER_INPUT: "user"}
_OUTPUTS = {OutputKind.USER_OUTPUT: "user", OutputKind.BUFFER_MUTATION: "buffer"}


def exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: dict[str, str], mode: str
) -> Captured:
    """The graph of a network as it is now.

    Args:
        model: the network.
        args: of its forward.
        kwargs: of its forward.
        names: the first name of each parameter and buffer.
        mode: what to call the mode that it is in.

    Raises:
        ModelError: where it cannot be run or exported, with the line at which it fails.
    """
    try:
        with untouched(model):
            program = _exported(model, args, kwargs)
    except Exception as error:
        raise ModelError(_refusal(error, mode)) from error
    _check_sizes(program, mode)
    signature, call = program.graph_signature, program.call_spec
    assert call.in_spec is not None
    assert call.out_spec is not None
    targets = {
        spec.arg.name: spec.target for spec in signature.input_specs if _INPUTS.get(spec.kind) == "tensor"
    }
    constants = [spec.target for spec in signature.input_specs if spec.kind == InputKind.CONSTANT_TENSOR]
    return Captured(
        mode,
        program.graph,
        program.graph_module,
        {name: names[target] for name, target in targets.items() if target in names},
        tuple((_INPUTS.get(spec.kind, "constant"), spec.target or "") for spec in signature.input_specs),  # type: ignore[misc]
        tuple((_OUTPUTS.get(spec.kind, "other"), spec.target or "") for spec in signature.output_specs),  # type: ignore[misc]
        {
            name: value
            for name in constants
            if name and isinstance(value := program.constants[name], torch.Tensor)
        },
        call.in_spec,
        call.out_spec,
    )


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """`torch.export` without what it prints: its warnings are for those who keep the program."""
    loud = logging.getLogger("torch")
    level, quiet = loud.level, io.StringIO()
    loud.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(quiet), redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, kwargs, strict=False)
    finally:
        loud.setLevel(level)


def _is_machinery(path: Path) -> bool:
    """Whether a file is PyTorch's, Python's or this package's, not the network's."""
    if {Path(torch.__file__).parent, Path(__file__).parent} & set(path.parents):
        return True
    return Path(inspect.__file__).parent in path.parents and "site-packages" not in path.parts


def _check_sizes(program: ExportedProgram, mode: str) -> None:
    """Raise where a tensor's size depends on the data."""
    for node in program.graph.nodes:
        val = node.meta.get("val")
        for each in val if isinstance(val, (tuple, list)) else [val]:
            if isinstance(each, torch.Tensor) and not all(isinstance(size, int) for size in each.shape):
                lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
                where = f", at {lines[-2]}: {lines[-1]}" if len(lines) > 1 else ""
                raise ModelError(f"the network's sizes depend on its data in {mode} mode{where}")


def _refusal(error: Exception, mode: str) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    if "data-dependent" in first:  # PyTorch speaks of its symbols here
        first = "what it does next depends on the values of its data, which no single graph can hold"
    return f"the network cannot be exported in {mode} mode: {first}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """The last line of the network's code that ran, such as `, at line 12 of net.py: if x.sum() > 0:`."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_file() and not _is_machinery(path):
            place = f", at line {frame.lineno} of {path.name}: {frame.line}"
    return place
