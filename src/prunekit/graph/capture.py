"""A network's graphs in evaluation and in training mode, recorded or, where that is refused, exported."""

from __future__ import annotations

import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from prunekit.errors import InputError, ModelError
from prunekit.graph.captured import Captured, attributes_of
from prunekit.graph.record import NotRecordedError, recorded
from prunekit.modes import keeping_modes, untouched

Inputs = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Mode = Literal["eval", "train"]
_LOG = logging.getLogger(__name__)


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


def captured(model: nn.Module, example_inputs: Inputs, *, record: bool = True) -> tuple[Captured, ...]:
    """The graphs in evaluation and in training mode, one if they are the same; the network is left as it was.

    Where training cannot be captured, as where layers are left out at random, evaluation alone will do if it
    reads every parameter: then training has no layers of its own.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        record: whether to record the operators as they are called, which takes a tenth of the time, before
            `torch.export` is asked.

    Raises:
        InputError: where the example inputs are of no usable kind or do not fit the network's arguments.
        ModelError: where the network cannot be run or exported, with the line at which it fails.
    """
    evaluation = captured_in(model, example_inputs, "eval", record=record)
    try:
        training = captured_in(model, example_inputs, "train", record=record)
        # nothing may depend on the mode
        return (evaluation,) if evaluation.same_as(training) else (evaluation, training)
    except ModelError:
        read = {evaluation.tensors.get(node.name) for node in evaluation.placeholders if node.users}
        names = canonical(model)
        if {names[name] for name, _ in model.named_parameters()} <= read:
            return (evaluation,)
        raise


def takes(graph: Captured, example_inputs: Inputs) -> bool:
    """Whether a graph was made for inputs of these shapes."""
    given = pytree.tree_leaves(arguments(example_inputs))
    shapes = [tuple(each.shape) if isinstance(each, torch.Tensor) else None for each in given]
    return graph.shapes == tuple(shapes)


def tensors_of(model: nn.Module, *, every_name: bool = False) -> dict[str, torch.Tensor]:
    """The parameters and buffers by full name: by the first name of what is tied, or by every one."""
    once = not every_name
    found = [*model.named_parameters(remove_duplicate=once), *model.named_buffers(remove_duplicate=once)]
    return dict(found)


def canonical(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer the first name of the same tensor."""
    first: dict[int, str] = {}
    every = tensors_of(model, every_name=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in every.items()}


def captured_in(model: nn.Module, example_inputs: Inputs, mode: Mode, *, record: bool = True) -> Captured:
    """The graph in one mode; the arguments and what is raised are those of `captured`."""
    args, kwargs = arguments(example_inputs)
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"example_inputs do not fit the network's forward: {error}") from error
    names = canonical(model)
    with keeping_modes(model), torch.enable_grad():
        for module in model.modules():
            module.training = mode == "train"
        if record:
            try:
                return recorded(model, args, kwargs, names)
            except NotRecordedError as error:
                _LOG.debug("exported in %s mode, since it cannot be recorded: %s", mode, error)
        return exported(model, args, kwargs, names, mode)


_INPUTS = {
    InputKind.PARAMETER: "tensor",
    InputKind.BUFFER: "tensor",
    InputKind.USER_INPUT: "user",
}
_OUTPUTS = {
    OutputKind.USER_OUTPUT: "user",
    OutputKind.BUFFER_MUTATION: "buffer",
}


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
    constants = [spec.target for spec in signature.input_specs if spec.kind == InputKind.CONSTANT_TENSOR]
    inputs = [(_INPUTS.get(spec.kind, "constant"), spec.target or "") for spec in signature.input_specs]
    outputs = [(_OUTPUTS.get(spec.kind, "other"), spec.target or "") for spec in signature.output_specs]
    return Captured(
        program.graph,
        attributes_of(program.graph, program.graph_module),
        tuple((kind, names.get(target, target)) for kind, target in inputs),  # type: ignore[misc]
        tuple(outputs),  # type: ignore[arg-type]
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
