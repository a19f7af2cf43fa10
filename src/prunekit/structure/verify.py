"""The proof that two networks compute the same function."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.structure.cut import Axes
from prunekit.structure.modes import evaluating

_AFFORDABLE = 2**28  # parameters of which two copies in float64 are made: 4 GiB
_ROUNDINGS = 1000  # units in the last place that a layer may be off by, for sums of up to about 10^6 terms


class VerificationError(ModelError):
    """A smaller network that does not compute what the masked one does; the model was put back as it was."""


@dataclass(frozen=True)
class Deviation:
    """The largest difference between two networks, over all that was compared.

    Attributes:
        largest: the absolute difference.
        relative: the difference over the largest magnitude that occurs: among the outputs of all layers for
            an output, among all gradients for a gradient.
        tolerance: what `relative` may be at most.
        where: which number differs most, such as `output 3 of example 0`.
    """

    largest: float
    relative: float
    tolerance: float
    where: str

    @property
    def accepted(self) -> bool:
        """Whether the difference is that of rounding."""
        return self.relative <= self.tolerance

    def __str__(self) -> str:
        sign = "<=" if self.accepted else ">"
        relative = f"{self.relative:.2g} relative {sign} {self.tolerance:.2g}"
        return f"{self.where} is off by {self.largest:.2g} ({relative})"


def same_function(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Tensor,
    *,
    tolerance: float | None = None,
    candidate_inputs: Tensor | None = None,
    gradients: Mapping[str, Axes] | None = None,
) -> Deviation:
    """Compare two networks in evaluation mode, on copies: in float64 where that is affordable.

    Args:
        reference: the network to agree with.
        candidate: the other one.
        inputs: (N, ...) inputs of the reference.
        tolerance: the relative difference that counts as rounding; by default 1000 units in the last place
            for each layer.
        candidate_inputs: inputs of the candidate, if they are others.
        gradients: compare the gradients of all parameters of the candidate, too, for a random weighting of
            the outputs; here stands what the candidate kept of the reference's parameters, by full name.

    Returns:
        The largest difference; it is the caller's to ask whether it is `accepted`.

    Raises:
        ModelError: if a network cannot be copied or run, or gives something other than one tensor.
        VerificationError: if it is the candidate that cannot be run, or its outputs have another shape.
    """
    kind = _precision(reference, inputs)
    first, second = _copy(reference, kind), _copy(candidate, kind)
    other = inputs if candidate_inputs is None else candidate_inputs
    magnitudes = _watch(first)
    with evaluating(first), evaluating(second), torch.set_grad_enabled(gradients is not None):
        expected, found = _run(first, inputs, kind, "reference"), _run(second, other, kind, "candidate")
    if tolerance is None:
        tolerance = rounding(reference, expected.dtype)
    if expected.shape != found.shape:
        raise VerificationError(
            f"outputs have shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
        )
    scale = max(_largest(expected), *magnitudes, 0.0)
    worst = _difference(expected.detach(), found.detach(), scale, tolerance, "output")
    if gradients is None or not expected.requires_grad:
        return worst
    compared = _gradients(first, second, (expected, found), gradients, tolerance)
    return max((worst, *compared), key=lambda deviation: deviation.relative)


def _gradients(
    first: nn.Module,
    second: nn.Module,
    outputs: tuple[Tensor, Tensor],
    kept: Mapping[str, Axes],
    tolerance: float,
) -> list[Deviation]:
    generator = torch.Generator().manual_seed(0)  # not the user's
    weighting = torch.randn(outputs[0].shape, generator=generator, dtype=torch.float64).to(outputs[0])
    with torch.enable_grad():
        for output in outputs:
            (output * weighting).sum().backward()  # type: ignore[no-untyped-call]
    expected = {name: _gradient(parameter) for name, parameter in first.named_parameters()}
    scale = max(map(_largest, expected.values()), default=0.0)
    found = []
    for name, parameter in second.named_parameters():
        survivors = expected[name]
        for axis, flags in kept.get(name, {}).items():
            survivors = survivors.index_select(axis, flags.nonzero().flatten().to(survivors.device))
        what = f"gradient of {name}"
        found.append(_difference(survivors, _gradient(parameter), scale, tolerance, what))
    return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _difference(expected: Tensor, found: Tensor, scale: float, tolerance: float, what: str) -> Deviation:
    same = (expected == found) | (expected.isnan() & found.isnan())
    apart = torch.where(same, 0.0, (expected - found).abs()).nan_to_num(nan=torch.inf).flatten()
    if not apart.numel():
        return Deviation(0.0, 0.0, tolerance, what)
    place = int(apart.argmax())
    largest = float(apart[place])
    relative = 0.0 if largest == 0 else largest / scale if scale > 0 else float("inf")
    index = [int(step) for step in torch.unravel_index(torch.tensor(place), expected.shape)]
    if what == "output":
        inner = ", ".join(map(str, index[1:])) or "0"
        return Deviation(largest, relative, tolerance, f"output {inner} of example {(index or [0])[0]}")
    return Deviation(largest, relative, tolerance, f"{what} at {index}")


def _precision(model: nn.Module, inputs: Tensor) -> torch.dtype | None:
    """float64, or None for the network's own precision where copies would not fit or cannot be made."""
    devices = {parameter.device.type for parameter in model.parameters()} | {inputs.device.type}
    count = sum(parameter.numel() for parameter in model.parameters())
    return torch.float64 if count <= _AFFORDABLE and "mps" not in devices else None


def _copy(model: nn.Module, kind: torch.dtype | None) -> nn.Module:
    copied = copy_of(model)
    copied = copied.to(kind) if kind is not None else copied
    for parameter in copied.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        ModelError: if the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # copying runs the user's code
        raise ModelError(
            f"the model cannot be copied for the proof: {type(error).__name__}: {error}"
        ) from error


def _run(model: nn.Module, inputs: Tensor, kind: torch.dtype | None, what: str) -> Tensor:
    refused = VerificationError if what == "candidate" else ModelError
    parameter = next(model.parameters(), inputs)
    values = inputs.to(parameter.device)
    if values.is_floating_point():
        values = values.to(kind or parameter.dtype)
    try:
        output: Any = model(values)
    except Exception as error:  # whatever the user's forward raises
        raise refused(f"the {what} network failed on the inputs: {type(error).__name__}: {error}") from error
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise refused(
            f"the {what} network gives {type(output).__name__} in place of a tensor of real numbers"
        )
    return output


def _watch(model: nn.Module) -> list[float]:
    """The largest magnitude that each layer puts out, filled in as the model runs: rounding grows with it."""
    magnitudes: list[float] = []

    def note(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            magnitudes.append(_largest(output))

    for module in model.modules():
        if not any(module.children()):
            module.register_forward_hook(note)
    return magnitudes


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().nan_to_num(posinf=0).max()) if tensor.numel() else 0.0


def rounding(model: nn.Module, dtype: torch.dtype, roundings: int = _ROUNDINGS) -> float:
    """The relative difference that so many units in the last place make for each layer with parameters."""
    layers = sum(any(True for _ in module.parameters(recurse=False)) for module in model.modules())
    return roundings * torch.finfo(dtype).eps * max(1, layers)
