"""The proof that two networks compute the same function: outputs and gradients, to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments
from prunekit.errors import ModelError
from prunekit.graph.cached_path import with_cache
from prunekit.graph.capture import tensors_of
from prunekit.graph.captured import GraphModel
from prunekit.graph.draws import Draws
from prunekit.graph.groups import KeepMasks
from prunekit.graph.other_inputs import Arguments, drawn, shuffled
from prunekit.graph.reference_run import (
    Deviation,
    Interpreter,
    VerificationError,
    exact,
    largest,
    of_gradients,
    of_outputs,
    rounding,
)
from prunekit.graph.surgery import Axes, Cut, copy_of, count_parameters
from prunekit.modes import Snapshot, holding, keeping_modes

UNTOUCHED = "; the model is as it was"
AFFORDABLE = 2**28  # parameters of which two copies in float64 are made: 4 GiB


def same_function(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Inputs,
    *,
    tolerance: float | None = None,
    gradients: Mapping[str, Axes] | None = None,
) -> Deviation:
    """Compare two networks in evaluation mode, on copies: in float64 where that is affordable.

    Args:
        reference: the network to agree with.
        candidate: the other one.
        inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        tolerance: the relative difference that counts as rounding; by default 1000 units in the last place
            for each layer.
        gradients: compare the gradients of all parameters of the candidate, too, for a random weighting of
            the outputs; here stands what the candidate kept of the reference's parameters, by full name.

    Returns:
        The largest difference; it is the caller's to ask whether it is `accepted`.

    Raises:
        ModelError: if a network cannot be copied or run, or gives no tensor of real numbers.
        VerificationError: if it is the candidate that cannot be run, or its outputs have other shapes.
    """
    call = arguments(inputs)
    first = Reference(reference, call, affordable=AFFORDABLE)
    second = _prepared(candidate, first.dtype)
    return _deviation(first, second, (call, call), tolerance=tolerance, gradients=gradients)


class Reference:
    """A copy of the network to agree with, in float64 where the device has it and that is affordable.

    Args:
        model: the network.
        call: the arguments that it will be run on.
        keeping: what stays of each node of its graphs, where statistics run over what stays.
        affordable: up to how many parameters copies in float64 are made; None for any number.
        calls: how often it is run in a row, each time: more than once if a call changes what the next gives.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Arguments,
        keeping: KeepMasks | None = None,
        *,
        affordable: int | None = None,
        calls: int = 1,
    ) -> None:
        given = [each for each in pytree.tree_leaves(call) if isinstance(each, Tensor)]
        too_many = affordable is not None and count_parameters(model) > affordable
        without = any(tensor.device.type == "mps" for tensor in [*model.parameters(), *given])
        self.dtype = None if too_many or without else torch.float64
        self.model = _prepared(model, self.dtype)
        self.keeping = keeping
        self.calls = calls

    def outputs(self, call: Arguments, *, training: bool) -> list[Tensor]:
        """What it gives; its buffers are put back.

        Raises:
            ModelError: where it cannot be run.
        """
        before = Snapshot(self.model, parameters=False)
        try:
            return _ran(self.model, call, self, training, "masked", ModelError)
        finally:
            before.restore()


def masked_reference(
    model: nn.Module,
    tensors: Mapping[str, Axes],
    inputs: Inputs,
    keeping: KeepMasks | None = None,
    calls: int = 1,
) -> Reference:
    """The masked network: zeros in all slices of the units, statistics over what is kept.

    Args:
        model: the network as it is; its graphs, where statistics run over units.
        tensors: what stays of each tensor.
        inputs: on which it must give numbers: where it divides by a buffer that would be zero, as by a
            spread for each channel, buffers keep their values.
        keeping: what stays of each node of the graphs.
        calls: as of `Reference`.
    """
    call = arguments(inputs)
    reference = Reference(model, call, keeping, calls=calls)
    masked = reference.model
    buffers = {name: buffer.clone() for name, buffer in masked.named_buffers() if name in tensors}
    found = tensors_of(masked)
    for name, axes in tensors.items():
        for axis, flags in axes.items():
            gone = (~flags).nonzero().flatten()
            found[name].data.index_fill_(axis, gone.to(found[name].device), 0)
    if buffers and not all(bool(each.isfinite().all()) for each in reference.outputs(call, training=False)):
        for name, buffer in buffers.items():
            found[name].data.copy_(buffer)
    return reference


def proven(
    reference: Reference,
    candidate: nn.Module,
    cut: Cut,
    inputs: Inputs,
    *,
    training: bool = True,
    tolerance: float | None = None,
    narrow: Callable[[Tensor], Tensor] | None = None,
    draws: Callable[[bool], Draws] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Deviation:
    """Compare on given and on random inputs, with the gradients of the random ones.

    In training mode only where the reference runs in it: some batch norms refuse a single example.

    Args:
        reference: the masked network.
        candidate: the smaller one.
        cut: what stays of each tensor, and what was multiplied.
        inputs: of the reference.
        training: whether in training mode, too.
        tolerance: as in `same_function`.
        narrow: from a tensor of the reference's inputs to the candidate's, if they are others.
        draws: `(training)`, what hands the random numbers that the reference draws to the candidate.
        names: of parameters of the candidate, those that they have in the reference, where these are others.

    Raises:
        ModelError: where the reference cannot be run.
        VerificationError: where the smaller network cannot be run or computes something else.
    """
    small = _prepared(candidate, reference.dtype)
    call = arguments(inputs)
    random = drawn(call)
    whole = [each for each in pytree.tree_leaves(call) if isinstance(each, Tensor)]
    if not all(each.is_floating_point() for each in whole) and not _takes(reference, random):
        random = shuffled(call)
    worst = None
    if training:
        try:
            reference.outputs(call, training=True)
        except ModelError:
            training = False
    for mode in (False, True) if training else (False,):
        for given in (call, random):
            what = f" in {'training' if mode else 'evaluation'}{', random inputs' if given is random else ''}"
            found = _deviation(
                reference,
                small,
                (given, given if narrow is None else pytree.tree_map_only(Tensor, narrow, given)),
                tolerance=tolerance,
                # at a kink (a ReLU at 0, a tie in a maximum) rounding decides: random inputs hit none
                gradients=cut.tensors if given is random else None,
                factors=cut.factors,
                training=mode,
                models=("masked", "smaller"),
                what=what if training else "",
                names=names,
                draws=None if draws is None else draws(mode),
            )
            worst = found if worst is None else max(worst, found, key=_relative)
            if not worst.accepted:
                raise VerificationError(
                    f"the smaller network computes something else than the masked one: {worst}{UNTOUCHED}"
                )
    assert worst is not None
    generated = _cached(reference, small, call, tolerance)
    return max(worst, generated or worst, key=_relative)


def _cached(
    reference: Reference, small: nn.Module, call: Arguments, tolerance: float | None
) -> Deviation | None:
    """The difference on the way that `generate()` goes, where the networks are language models that do."""
    try:
        with _prepared_run(reference.model, reference, training=False), torch.no_grad():
            expected = with_cache(reference.model, _converted(call, reference.model, reference.dtype))
    except Exception:  # it takes its words in another way, or more than words
        return None
    if expected is None:
        return None
    try:
        with _prepared_run(small, reference, training=False), torch.no_grad():
            found = with_cache(small, _converted(call, small, reference.dtype))
    except Exception as error:  # whatever the user's forward raises
        raise VerificationError(
            f"the smaller network failed where it generates with a cache: {type(error).__name__}: {error}"
        ) from error
    if found is None and isinstance(small, GraphModel):  # which has no such way
        return None
    tolerance = rounding(small, expected.dtype) if tolerance is None else tolerance
    (deviation,) = of_outputs([expected], [] if found is None else [found], 0.0, tolerance, " with a cache")
    if not deviation.accepted:
        raise VerificationError(
            f"the smaller network computes something else than the masked one: {deviation}{UNTOUCHED}"
        )
    return deviation


def _takes(reference: Reference, call: Arguments) -> bool:
    """Whether a network can be run: of lengths and positions not every integer is allowed."""
    try:
        reference.outputs(call, training=False)
    except ModelError:
        return False
    return True


def run_both(model: nn.Module, other: nn.Module, inputs: Inputs) -> Deviation:
    """How far exported graphs, or a masked copy, are from the network itself, in both modes."""
    call = arguments(inputs)
    reference = Reference(model, call)
    second = _prepared(other, reference.dtype)
    found = (
        _deviation(
            reference,
            second,
            (call, call),
            training=training,
            models=("given", "exported"),
            what=f" in {'training' if training else 'evaluation'}",
        )
        for training in (False, True)
    )
    return max(found, key=_relative)


def _deviation(
    reference: Reference,
    candidate: nn.Module,
    calls: tuple[Arguments, Arguments],
    *,
    tolerance: float | None = None,
    gradients: Mapping[str, Axes] | None = None,
    factors: Mapping[str, Tensor] = MappingProxyType({}),
    training: bool = False,
    models: tuple[str, str] = ("reference", "candidate"),
    what: str = "",
    names: Mapping[str, str] = MappingProxyType({}),
    draws: Draws | None = None,
) -> Deviation:
    """The largest difference of two prepared networks, whose buffers are put back."""
    before = Snapshot(reference.model, parameters=False), Snapshot(candidate, parameters=False)
    try:
        with _magnitudes(reference.model) as magnitudes, draws or nullcontext():
            expected = _ran(reference.model, calls[0], reference, training, models[0], ModelError)
        with nullcontext() if draws is None else draws.again():
            found = _ran(candidate, calls[1], reference, training, models[1], VerificationError)
        tolerance = rounding(candidate, expected[0].dtype) if tolerance is None else tolerance
        deviations = of_outputs(expected, found, max(magnitudes, default=0.0), tolerance, what)
        if gradients is not None:
            both = reference.model, candidate
            deviations += of_gradients(both, (expected, found), gradients, tolerance, what, factors, names)
    finally:
        for each in before:
            each.restore()
    return max(deviations, key=_relative)


def _relative(deviation: Deviation) -> float:
    return deviation.relative


# ---- copies ------------------------------------------------------------------------------------------------


def _prepared(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy all of whose parameters have gradients."""
    copied = copy_of(model)
    copied = copied if dtype is None else copied.to(dtype)
    for parameter in copied.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


def _ran(
    model: nn.Module,
    call: Arguments,
    reference: Reference,
    training: bool,
    what: str,
    refused: type[ModelError],
) -> list[Tensor]:
    """All tensors of real numbers that a prepared network gives."""
    args, kwargs = _converted(call, model, reference.dtype)
    keeping = reference.keeping if model is reference.model else None
    with _prepared_run(model, reference, training=training), torch.enable_grad():
        try:
            if isinstance(model, GraphModel):
                output = model.run(
                    args,
                    kwargs,
                    lambda number, graph, given: Interpreter(
                        graph, None if keeping is None else partial(keeping, number)
                    ).run(*given),
                )
            else:
                output = model(*args, **kwargs)
                if reference.calls > 1:
                    output = [output, *(model(*args, **kwargs) for _ in range(reference.calls - 1))]
        except Exception as error:  # whatever the user's forward raises
            raise refused(
                f"the {what} network failed on the inputs: {type(error).__name__}: {error}"
            ) from error
    found = tensors_in(output)
    if not found:
        raise refused(
            f"the {what} network gives {type(output).__name__} in place of a tensor of real numbers, so "
            "nothing can be proven of it"
        )
    return found


@contextmanager
def _prepared_run(model: nn.Module, reference: Reference, *, training: bool) -> Iterator[None]:
    """One mode for all modules and the precision of the proof; what modules keep of a run is put back."""
    exactly = nullcontext() if reference.dtype is None else exact()
    with keeping_modes(model), holding(model), exactly:
        for module in model.modules():
            module.training = training
        yield


def tensors_in(output: Any, *, real: bool = True) -> list[Tensor]:
    """All tensors in what a network gives, however nested; those of real numbers only, unless told not."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() or not real else []
    if isinstance(output, Mapping):
        output = list(output.values())
    elif is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, field.name) for field in fields(output)]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in tensors_in(item, real=real)]
    return []


def _converted(call: Arguments, model: nn.Module, dtype: torch.dtype | None) -> Arguments:
    """The arguments in the precision of the proof, where the network is, if it is at one place."""
    parameter = next(model.parameters(), None)
    places = {each.device for each in model.parameters()}

    def converted(value: Tensor) -> Tensor:
        value = value.detach().clone()  # what was made in inference mode is no input of a derivative
        if len(places) == 1:
            value = value.to(next(iter(places)))
        if not value.is_floating_point():
            return value
        own = value.dtype if parameter is None else parameter.dtype
        return value.to(dtype or own)

    return pytree.tree_map_only(Tensor, converted, call)


@contextmanager
def _magnitudes(model: nn.Module) -> Iterator[list[float]]:
    """The largest magnitude that each layer puts out while the model runs: rounding grows with it."""
    found: list[float] = []

    def note(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            found.append(largest(output))

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
