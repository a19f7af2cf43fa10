"""The proof that a network without some units computes what the masked one does, in both modes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph.capture import Inputs, arguments
from prunekit.graph.graph_model import GraphModel, graphs_of
from prunekit.graph.running import Interpreter, exact
from prunekit.graph.traced import Keeping, Traced
from prunekit.modes import keeping_modes
from prunekit.structure.cut import Axes
from prunekit.structure.verify import Deviation, VerificationError, copy_of, rounding

UNTOUCHED = "; the model is as it was"


class Reference:
    """The masked network: zeros in all slices of the units, statistics over what is kept.

    Args:
        model: the network as it is.
        traced: its plan and graphs.
        tensors: what stays of each tensor.
        keeping: what stays of each node, where statistics run over units; else the network itself is run.
        inputs: on which it must give numbers: where it divides by a buffer that would be zero, as by a
            spread for each channel, buffers keep their values.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: Traced,
        tensors: Mapping[str, Axes],
        keeping: Keeping | None,
        inputs: Inputs,
    ) -> None:
        self.keeping = keeping
        whole = in_double(model)
        if keeping is not None:
            graphs = {number: graph.module for number, graph in enumerate(traced.graphs)}
            whole = GraphModel(whole, graphs_of(traced.graphs, graphs))
            whole.to(torch.float64)
        self.model = whole
        buffers = {name: buffer.clone() for name, buffer in whole.named_buffers() if name in tensors}
        found = dict([*whole.named_parameters(), *whole.named_buffers()])
        for name, axes in tensors.items():
            for axis, flags in axes.items():
                gone = (~flags).nonzero().flatten()
                found[name].data.index_fill_(axis, gone.to(found[name].device), 0)
        if buffers and not _finite(whole, inputs, keeping):
            _put_back(whole, {**_state(whole), **buffers})


def _finite(model: nn.Module, inputs: Inputs, keeping: Keeping | None) -> bool:
    before = _state(model)
    outputs = _ran(model, inputs, False, keeping, "masked")
    _put_back(model, before)
    return all(bool(output.isfinite().all()) for output in outputs)


def in_double(model: nn.Module) -> nn.Module:
    """A copy in float64 all of whose parameters have gradients."""
    copied = copy_of(model).to(torch.float64)
    for parameter in copied.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


def proven(
    reference: Reference, candidate: nn.Module, tensors: Mapping[str, Axes], inputs: Inputs
) -> Deviation:
    """Compare on given and on random inputs, in evaluation and in training mode, with gradients.

    Args:
        reference: the masked network.
        candidate: the smaller one.
        tensors: what stays of each tensor.
        inputs: of both.

    Raises:
        VerificationError: where the smaller network cannot be run or computes something else.
    """
    small = in_double(candidate)
    tolerance = rounding(candidate, torch.float64)
    worst = Deviation(0.0, 0.0, tolerance, "nothing")
    for training in (False, True):
        for drawn in (False, True):
            given = _drawn(inputs) if drawn else inputs
            what = ("training" if training else "evaluation") + (", random inputs" if drawn else "")
            big_state, small_state = _state(reference.model), _state(small)
            expected = _ran(reference.model, given, training, reference.keeping, "masked")
            found = _ran(small, given, training, None, "smaller")
            worst = max(worst, _compared(expected, found, tolerance, what), key=_relative)
            if drawn:
                gradients = _gradients(reference.model, small, expected, found, tensors, tolerance, what)
                worst = max(worst, gradients, key=_relative)
            _put_back(reference.model, big_state)
            _put_back(small, small_state)
            if not worst.accepted:
                raise VerificationError(
                    f"the smaller network computes something else than the masked one: {worst}{UNTOUCHED}"
                )
    return worst


def run_both(model: nn.Module, graph: nn.Module, inputs: Inputs) -> Deviation:
    """How far the exported graphs, or a masked copy, are from the network itself, in both modes."""
    first, second = in_double(model), in_double(graph)
    tolerance = rounding(model, torch.float64)
    found = []
    for training in (False, True):
        pair = [_ran(each, inputs, training, None, "exported") for each in (first, second)]
        found.append(_compared(pair[0], pair[1], tolerance, "training" if training else "evaluation"))
    return max(found, key=_relative)


def _relative(deviation: Deviation) -> float:
    return deviation.relative


def _ran(
    model: nn.Module, inputs: Inputs, training: bool, keeping: Keeping | None, what: str
) -> list[Tensor]:
    args, kwargs = arguments(_converted(inputs))
    refused = ModelError if what == "masked" else VerificationError
    with keeping_modes(model), torch.enable_grad(), exact():
        for module in model.modules():
            module.training = training
        try:
            if isinstance(model, GraphModel):
                output = model.run(
                    args,
                    kwargs,
                    lambda number, graph, given: Interpreter(graph, keeping, number).run(*given),
                )
            else:
                output = model(*args, **kwargs)
        except Exception as error:  # whatever the user's forward raises
            raise refused(f"the {what} network failed: {type(error).__name__}: {error}") from error
    return tensors_in(output)


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors of real numbers in what a network gives, however nested."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    elif is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, field.name) for field in fields(output)]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in tensors_in(item)]
    return []


def _converted(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.detach().double() if inputs.is_floating_point() else inputs.clone()
    if isinstance(inputs, Mapping):
        return {key: _converted(value) for key, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return tuple(_converted(value) for value in inputs)
    return inputs


def _drawn(inputs: Any) -> Any:
    """Random inputs of the same shapes: numbers of the same mean and spread, integers of the same range."""
    generator = torch.Generator().manual_seed(0)

    def draw(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: draw(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(draw(item) for item in value)
        if not isinstance(value, Tensor) or not value.numel() or value.dtype == torch.bool:
            return value
        if not value.is_floating_point():
            low, high = int(value.min()), int(value.max())
            drawn = torch.randint(low, high + 1, value.shape, generator=generator)
            return drawn.to(value.device, value.dtype)
        exactly = value.double().cpu().nan_to_num(posinf=0, neginf=0)
        spread = float(exactly.std(correction=0)) or 1.0
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return (exactly.mean() + spread * noise).to(value)

    return draw(inputs)


def _compared(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float, what: str) -> Deviation:
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        shapes = [tuple(tensor.shape) for tensor in found]
        raise VerificationError(
            f"outputs have shapes {shapes} in place of {[tuple(tensor.shape) for tensor in expected]}"
        )
    if not expected:
        raise ModelError("the network gives no tensor of real numbers, so nothing can be proven of it")
    return max(
        (
            _difference(one.detach(), other.detach(), _largest(one), tolerance, f"output {number} in {what}")
            for number, (one, other) in enumerate(zip(expected, found, strict=True))
        ),
        key=_relative,
    )


def _gradients(
    first: nn.Module,
    second: nn.Module,
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    kept: Mapping[str, Axes],
    tolerance: float,
    what: str,
) -> Deviation:
    for model, outputs in ((first, expected), (second, found)):
        for parameter in model.parameters():
            parameter.grad = None
        generator = torch.Generator().manual_seed(1)
        total = sum(
            (output * torch.randn(output.shape, generator=generator, dtype=torch.float64)).sum()
            for output in outputs
            if output.requires_grad
        )
        if isinstance(total, Tensor):
            total.backward()  # type: ignore[no-untyped-call]
    wanted = {name: _gradient(parameter) for name, parameter in first.named_parameters()}
    got = {name: _gradient(parameter) for name, parameter in second.named_parameters()}
    for name, axes in kept.items():
        for axis, flags in axes.items():
            if name in wanted:
                wanted[name] = wanted[name].index_select(axis, flags.nonzero().flatten())
    scale = max(map(_largest, wanted.values()), default=0.0)
    deviations = [
        _difference(wanted[name], got[name], scale, tolerance, f"gradient of {name} in {what}")
        for name in got
    ]
    return max(deviations, key=_relative, default=Deviation(0.0, 0.0, tolerance, "nothing"))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _difference(expected: Tensor, found: Tensor, scale: float, tolerance: float, what: str) -> Deviation:
    if expected.shape != found.shape:
        raise VerificationError(f"{what} has shape {tuple(found.shape)} in place of {tuple(expected.shape)}")
    if not expected.numel():
        return Deviation(0.0, 0.0, tolerance, what)
    same = (expected == found) | (expected.isnan() & found.isnan())
    apart = torch.where(same, 0.0, (expected - found).abs()).nan_to_num(nan=torch.inf)
    largest = float(apart.max())
    relative = 0.0 if largest == 0 else largest / scale if scale > 0 else float("inf")
    return Deviation(largest, relative, tolerance, what)


def _largest(tensor: Tensor) -> float:
    tensor = tensor.detach()
    return float(tensor.abs().nan_to_num(posinf=0).clamp(max=1e300).max()) if tensor.numel() else 0.0


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: copy.deepcopy(buffer) for name, buffer in model.named_buffers()}


def _put_back(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.data.copy_(state[name])
