"""A network's graphs, exported by PyTorch as it computes in evaluation and in training mode."""

from __future__ import annotations

import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from prunekit.errors import InputError, ModelError
from prunekit.modes import keeping_modes

Inputs = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Captured:
    """One exported graph.

    Attributes:
        mode: "eval" or "train".
        program: what `torch.export` gave.
        tensors: for each placeholder of a parameter or buffer its full name, the first one if it is tied.
    """

    mode: str
    program: ExportedProgram
    tensors: dict[str, str]


def arguments(example_inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments for the network.

    Raises:
        InputError: where the inputs are neither a tensor nor a tuple, list or dict.
    """
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    kind = type(example_inputs).__name__
    raise InputError(f"example_inputs must be a tensor, a tuple or a dict of named arguments, not {kind}")


def captured(model: nn.Module, example_inputs: Inputs) -> tuple[Captured, ...]:
    """The graphs in evaluation and in training mode; the network is left as it was.

    Where training cannot be exported, as where layers are left out at random, evaluation alone will do if it
    reads every parameter: then training has no layers of its own.

    Raises:
        InputError: where the example inputs are of no usable kind or do not fit the network's arguments.
        ModelError: where the network cannot be run or exported, with the line at which it fails.
    """
    args, kwargs = arguments(example_inputs)
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"example_inputs do not fit the network's forward: {error}") from error
    names = canonical(model)
    evaluation = _captured(model, args, kwargs, names, "eval")
    try:
        return evaluation, _captured(model, args, kwargs, names, "train")
    except ModelError:
        placeholders = [
            node for node in evaluation.program.graph.nodes if node.op == "placeholder" and node.users
        ]
        read = {evaluation.tensors.get(node.name) for node in placeholders}
        if {names[name] for name, _ in model.named_parameters()} <= read:
            return (evaluation,)
        raise


def canonical(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer the first name of the same tensor."""
    first: dict[int, str] = {}
    found = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in found}


def _captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: dict[str, str], mode: str
) -> Captured:
    with keeping_modes(model), torch.enable_grad():
        for module in model.modules():
            module.training = mode == "train"
        try:
            program = _exported(model, args, kwargs)
        except Exception as error:
            raise ModelError(_refusal(error, mode)) from error
    _check_sizes(program, mode)
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    tensors = {
        spec.arg.name: names[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds and spec.target is not None and spec.target in names
    }
    return Captured(mode, program, tensors)


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
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_file() and not _is_machinery(path):
            place = f", at line {frame.lineno} of {path.name}: {frame.line}"
    return f"the network cannot be exported in {mode} mode: {first}{place}"
