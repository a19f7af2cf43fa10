"""A network's graphs in evaluation and in training mode, recorded or, where that is refused, exported.

Where no example inputs are given, some are made up: two of the shape that the first layer reads. The network
is recorded on tensors without data, so that an attempt takes milliseconds.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments
from prunekit.errors import InputError, ModelError, brief
from prunekit.graph.cached_path import without_cache
from prunekit.graph.captured_graph import Captured, attributes_of
from prunekit.graph.other_inputs import Arguments, variations
from prunekit.graph.places import place_of
from prunekit.graph.record import MisfitError, NotRecordedError, recorded
from prunekit.modes import evaluating, keeping_modes, untouched

Mode = Literal["eval", "train"]
_LOG = logging.getLogger(__name__)


def captured(
    model: nn.Module, example_inputs: Inputs, *, record: bool = True, decided: bool = False
) -> tuple[Captured, ...]:
    """The graphs in evaluation and in training mode, one if they are the same; the network is left as it was.

    Where training cannot be captured, as where layers are left out at random, evaluation alone will do if it
    reads every parameter: then training has no layers of its own.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        record: whether to record the operators as they are called, which takes a tenth of the time, before
            `torch.export` is asked.
        decided: whether a graph will do of what values of the inputs, parameters or buffers, or earlier calls
            decided (`Captured.by_data`, `by_state`, `by_calls`). It must not take the network's place. An
            export that is made in its place says only whether earlier calls do.

    Raises:
        InputError: where the example inputs are of no usable kind or do not fit the network's arguments.
        ModelError: where the network cannot be run or exported, with the line at which it fails, or where
            values decide what is read of it, and the example inputs do not reach all of it.
    """
    evaluation = captured_in(model, example_inputs, "eval", record=record, decided=decided)
    graphs: tuple[Captured, ...] = (evaluation,)
    try:
        training = captured_in(model, example_inputs, "train", record=record, decided=decided)
        if not evaluation.same_as(training):  # nothing may depend on the mode
            graphs = evaluation, training
    except ModelError:
        if _unread(model, graphs):
            raise
    by_data = [line for graph in graphs for line in graph.by_data]
    missed = _unread(model, graphs) if by_data else []
    if missed:
        raise ModelError(
            f"values of the inputs decide what is computed, {by_data[0]}; {missed[0]} is not reached by the "
            "example inputs: give some that reach all parameters"
        )
    return graphs


def _unread(model: nn.Module, graphs: Sequence[Captured]) -> list[str]:
    """The parameters that no graph reads."""
    every = [each for graph in graphs for each in (graph, *graph.others)]
    read = {graph.tensors.get(node.name) for graph in every for node in graph.placeholders if node.users}
    names = canonical(model)
    return [name for name, _ in model.named_parameters() if names[name] not in read]


def takes(graph: Captured, example_inputs: Inputs) -> bool:
    """Whether a graph was made for inputs of these shapes."""
    given = pytree.tree_leaves(arguments(example_inputs))
    shapes = [tuple(each.shape) if isinstance(each, Tensor) else None for each in given]
    return graph.shapes == tuple(shapes)


def tensors_of(model: nn.Module, *, every_name: bool = False) -> dict[str, Tensor]:
    """The parameters and buffers by full name: by the first name of what is tied, or by every one."""
    once = not every_name
    found = [*model.named_parameters(remove_duplicate=once), *model.named_buffers(remove_duplicate=once)]
    return dict(found)


def canonical(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer the first name of the same tensor."""
    first: dict[int, str] = {}
    every = tensors_of(model, every_name=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in every.items()}


def captured_in(
    model: nn.Module, example_inputs: Inputs, mode: Mode, *, record: bool = True, decided: bool = False
) -> Captured:
    """The graph in one mode; the arguments and what is raised are those of `captured`."""
    args, kwargs = arguments(example_inputs)
    takes = inspect.signature(model.forward)
    try:
        takes.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"example_inputs do not fit the network's forward: {error}; "
            f"it takes {', '.join(takes.parameters)}"
        ) from error
    _check_kinds(model)
    found = _captured_in(model, args, kwargs, mode, record=record, decided=decided)
    return replace(found, parameters=_parameters_of(model))


def _parameters_of(model: nn.Module) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The names of what a forward takes, with defaults; none where it takes any number of arguments."""
    taken = list(inspect.signature(model.forward).parameters.values())
    if any(each.kind is each.VAR_POSITIONAL for each in taken):
        return ()
    return tuple(
        (each.name, () if each.default is each.empty else (each.default,))
        for each in taken
        if each.kind is not each.VAR_KEYWORD
    )


def _captured_in(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mode: Mode,
    *,
    record: bool,
    decided: bool,
) -> Captured:
    names, by_calls = canonical(model), tuple[str, ...]()
    with keeping_modes(model), torch.enable_grad():
        for module in model.modules():
            module.training = mode == "train"
        for recording in (_without_values, _with_values) if record else ():
            try:
                found = recording(model, (args, kwargs), names, sizes=mode == "eval")
            except NotRecordedError as error:
                _LOG.debug("in %s mode the network cannot be recorded: %s", mode, error)
                continue
            if decided or not (found.by_data or found.by_state or found.by_calls):
                return found
            by_calls = found.by_calls
        # an export sees one call only
        return replace(exported(model, args, kwargs, names, mode), by_calls=by_calls)


def _check_kinds(model: nn.Module) -> None:
    """Refuse modules whose code cannot be read, and such as have no parameters yet."""
    for name, module in model.named_modules():
        what = f"the module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{what} is scripted (torch.jit): give the module that it was made from")
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(map(torch.nn.parameter.is_lazy, own)):
            raise ModelError(f"{what} is lazy and has no parameters yet: run the model once before")


def _without_values(model: nn.Module, call: Arguments, names: dict[str, str], *, sizes: bool) -> Captured:
    """The graph of a network that asks for no values."""
    return recorded(model, *call, names, sizes=sizes)


def _with_values(model: nn.Module, call: Arguments, names: dict[str, str], *, sizes: bool) -> Captured:
    """The graph of what a network does on these inputs, with those of what it does on others."""
    found = recorded(model, *call, names, sizes=sizes, values=True)
    others: list[Captured] = []
    for other in variations(call) if found.by_data else ():
        try:
            graph = recorded(model, *other, names, values=True)
        except NotRecordedError:  # inputs that it does not take
            continue
        if not any(graph.same_as(each) for each in (found, *others)):
            others.append(graph)
    return replace(found, others=tuple(others))


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
        with untouched(model), without_cache(model):
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
        {name: value for name in constants if name and isinstance(value := program.constants[name], Tensor)},
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


def _check_sizes(program: ExportedProgram, mode: str) -> None:
    """Raise where a tensor's size depends on the data."""
    for node in program.graph.nodes:
        val = node.meta.get("val")
        for each in val if isinstance(val, (tuple, list)) else [val]:
            if isinstance(each, Tensor) and not all(isinstance(size, int) for size in each.shape):
                lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
                where = f", at {lines[-2]}: {lines[-1]}" if len(lines) > 1 else ""
                raise ModelError(f"the network's sizes depend on its data in {mode} mode{where}")


def _refusal(error: Exception, mode: str) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    if "data-dependent" in first:  # PyTorch speaks of its symbols here
        first = "what it does next depends on the values of its data, which no single graph can hold"
    return f"the network cannot be exported in {mode} mode: {first}{place_of(error)}"


# ---- inputs made up where none are given -------------------------------------------------------------------

BATCH = 2
"""How many examples are made up."""

_SIDES = (28, 32, 224, 16, 64, 8, 4, 96, 128, 2, 1, 299, 512, 1024)
_LONGEST = {1: 2**18, 2: 2**11, 3: 2**8}
"""The longest side that is tried, by the number of sides."""
_OF_VALUES = ("meta tensors", "tensor subclasses")
"""What PyTorch says where the values of a tensor without data are asked for."""
_WIDE = 64
"""So many lengths are all tried."""


def made_up_inputs(model: nn.Module) -> tuple[Tensor, ...]:
    """Arguments that a network takes in evaluation mode, all zeros, in the type of its first parameter.

    Tried are the shapes that its layers read, in the order in which it has them: (2, features) for linear
    layers, (2, channels, sides...) for others. The sides are common ones, and then those with which the first
    linear layer behind a flatten gets as many numbers as it reads.

    Raises:
        ModelError: where it takes none of them.
    """
    attempts = _Attempts(model)
    with evaluating(model), torch.enable_grad():
        shapes = list(dict.fromkeys(_first_shapes(model)))
        for features, sides in shapes:
            if attempts.fits(features, sides):
                return attempts.inputs
        for features in attempts.misfits:
            if attempts.fits_oblong(features):
                return attempts.inputs
    tried = ", ".join(map(str, attempts.tried[:4])) + (", ..." if len(attempts.tried) > 4 else "")
    raise ModelError(
        f"no inputs that the model takes could be made up, tried are {tried}: give example_inputs "
        f"(the first: {attempts.why})"
    )


def _first_shapes(model: nn.Module) -> Iterator[tuple[tuple[int, ...], int]]:
    """What each layer reads of an example: features or channels, and the number of sides behind them."""
    sides = 0
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, nn.Linear):
            yield (module.in_features,), 0
        elif isinstance(module, nn.modules.conv._ConvNd):
            sides = len(module.kernel_size)
            yield (module.in_channels,), sides
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield (module.num_features,), {"BatchNorm1d": 0, "BatchNorm3d": 3}.get(name, 2)
        elif isinstance(module, nn.LayerNorm):
            yield module.normalized_shape, 0
        elif "Pool" in name and name[-2:] in ("1d", "2d", "3d"):
            sides = int(name[-2])
            yield from (((1,), sides), ((3,), sides))
    yield from (((1,), sides or 2), ((3,), sides or 2))


class _Attempts:
    """Attempts to record a network.

    Attributes:
        tried: the shapes of the inputs so far.
        why: what the first attempt failed with, with the line of the user's code.
        misfits: the channels with which a linear layer was given another number of features than it reads.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tried: list[tuple[int, ...]] = []
        self.why = ""
        self.misfits: list[tuple[int, ...]] = []
        self._model = model
        self._names = canonical(model)
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        taken = inspect.signature(model.forward).parameters.values()
        self._count = max(1, sum(each.kind in plain and each.default is each.empty for each in taken))
        self._like = next(model.parameters())
        self._misfit = self._ran = False  # whether a linear layer, or any operator, was met

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Zeros of the shape that was tried last, one tensor for each input."""
        shape, like = self.tried[-1], self._like
        return tuple(torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(self._count))

    def fits(self, features: tuple[int, ...], sides: int) -> bool:
        """Whether the network takes so many features, or channels of images with equal sides."""

        def attempt(side: int) -> int | None:
            return self._attempt((BATCH, *features, *[side] * sides))

        if not sides:
            return attempt(0) == 0
        self._misfit = self._ran = False
        fits = self._reached(attempt, _LONGEST[sides])
        if self._misfit and sides == 2:
            self.misfits.append(features)
        return fits

    def fits_oblong(self, channels: tuple[int, ...]) -> bool:
        """Whether the network takes images of some other form."""
        return any(
            self._reached(lambda wide, high=high: self._attempt((BATCH, *channels, high, wide)), _LONGEST[2])  # type: ignore[misc]
            for high in range(1, _WIDE)
        )

    def _reached(self, attempt: Callable[[int], int | None], longest: int) -> bool:
        """Whether an attempt with some length succeeds: one of the common ones, or one found by bisection."""
        low, high = 0, longest + 1
        for length in (*_SIDES, *(2**power for power in range(11, longest.bit_length()))):
            if length > _SIDES[-1] and not self._ran:
                return False  # it fails at once, whatever the length
            if low < length < high:
                found = attempt(length)
                if found == 0:
                    return True
                if found is not None:
                    low, high = (length, high) if found < 0 else (low, length)
        while high - low > _WIDE:
            middle = (low + high) // 2
            found = attempt(middle)
            if found == 0:
                return True
            low, high = (middle, high) if found is not None and found < 0 else (low, middle)
        return any(attempt(length) == 0 for length in range(low + 1, high))

    def _attempt(self, shape: tuple[int, ...]) -> int | None:
        """0 if the network takes it, below if it is too small, above if it is too large; else None."""
        self.tried.append(shape)
        args = (torch.empty(shape, dtype=self._like.dtype, device=self._like.device),) * self._count
        try:
            found = recorded(self._model, args, {}, self._names)
        except MisfitError as error:
            self._misfit = self._ran = True
            self._failed(error)
            return error.given - error.read
        except NotRecordedError as error:
            if error.__cause__ is None or any(text in str(error) for text in _OF_VALUES):
                return 0  # it came to what no recording can hold, so that the shape is all right
            self._ran |= error.operators > 0
            self._failed(error.__cause__)
            return None
        rows = _rows(found)
        if len(shape) > 2 and rows not in (0, BATCH):  # a view has all numbers but the first written into it
            return rows - BATCH
        return 0

    def _failed(self, error: BaseException) -> None:
        self.why = self.why or f"{brief(str(error), 200)}{place_of(error)}"


def _rows(graph: Captured) -> int:
    """How many rows the first tensor that comes out has; 0 for a single number."""
    outputs = list(graph.graph.nodes)[-1].args[0]
    values = [node.meta["val"] for node in outputs if isinstance(node, fx.Node)]
    return int(values[0].shape[0]) if values and values[0].dim() else 0
