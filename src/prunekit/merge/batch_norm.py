"""Batch norms folded into the layers beside them: exact in evaluation mode, with proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from prunekit.batches import Inputs, feed
from prunekit.errors import ModelError
from prunekit.graph.capture import captured_in
from prunekit.graph.copies import copy_of
from prunekit.graph.proof import UNTOUCHED, same_function
from prunekit.graph.reference_run import Deviation, VerificationError
from prunekit.graph.rows import LAYERS, TRANSPOSED
from prunekit.graph.surgery import own_module, put_modules
from prunekit.merge.layer_calls import LayerCall, LayerCalls
from prunekit.models.absent import PASSED, Absent
from prunekit.modes import evaluating
from prunekit.statistics.collect import watched_calls

AFFINE = LAYERS + TRANSPOSED
"""The layers that a batch norm can be folded into."""


@dataclass(frozen=True)
class Fold:
    """A batch norm and the layer that takes it over.

    Attributes:
        norm: the batch norm's full name.
        layer: the full name of a linear or convolution layer.
        behind: whether the batch norm reads the layer, or is read by it.
    """

    norm: str
    layer: str
    behind: bool


@dataclass(frozen=True)
class FoldResult:
    """What was folded.

    Attributes:
        model: the network, the one that was given.
        folds: in the order in which they were made.
        refused: for each batch norm that stays, by full name, the reason.
        deviation: the largest difference from the network as it was.
    """

    model: nn.Module
    folds: tuple[Fold, ...]
    refused: Mapping[str, str]
    deviation: Deviation


def fold_batch_norms(model: nn.Module, example_inputs: Inputs) -> FoldResult:
    """Fold the batch norms of a network into linear and convolution layers, in place, with proof.

    In evaluation mode a batch norm is a scale and a shift for each channel. Behind a layer that nothing else
    reads both go into its weights and biases; before a layer they do where that pads with no zeros. A
    layer without a bias gets one. In the place of the batch norm stands an `Absent` module that passes on
    what it is given, so in training mode the network has no batch statistics any more.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.

    Raises:
        InputError: where the example inputs do not fit the network.
        ModelError: where no batch norm can be folded, with the reason for each; where the network cannot be
            exported.
        VerificationError: if the folded network computes something else, compared in double precision. In
            every case the model is as it was.
    """
    model = own_module(model)
    folds, refused = folds_of(LayerCalls(model, captured_in(model, example_inputs, "eval")))
    if not folds:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise ModelError(
            "there is nothing to fold: looked for batch norms next to linear and convolution layers"
            + (f" ({reasons})" if refused else ", and the network has no batch norm that it runs")
        )
    reference = copy_of(model).double()
    folded = copy_of(reference)
    apply_folds(folded, folds)
    deviation = same_function(reference, folded, example_inputs)
    if not deviation.accepted:
        raise VerificationError(f"the folded network computes something else: {deviation}{UNTOUCHED}")
    apply_folds(model, folds)
    return FoldResult(model, folds, refused, deviation)


@torch.no_grad()
def restore_batch_norms(model: nn.Module, folds: Sequence[Fold], inputs: Inputs) -> tuple[str, ...]:
    """Batch norms in the places where some were folded into the layer before, for a training, in place.

    Their statistics are those of what the layers give now, and they take back what they scale and shift, so
    that in evaluation mode the network computes what it did. `fold_batch_norms` folds them again behind the
    training.

    Args:
        model: the network.
        folds: what was folded; places are left out whose layer, or whose place, holds something else now.
        inputs: of examples enough for statistics: a tensor, a tuple of arguments, or a dict of named ones.

    Returns:
        The full names of the batch norms.

    Raises:
        ModelError: where no batch norm can be put back, or a layer never runs; the model is as it was.
    """
    model = own_module(model)
    modules = dict(model.named_modules())
    places = {
        fold.layer: fold.norm
        for fold in reversed(folds)  # of two behind one another the first
        if fold.behind
        and isinstance(modules.get(fold.layer), AFFINE)
        and isinstance(modules.get(fold.norm), Absent)
    }
    if not places:
        raise ModelError("there is no place where a batch norm was folded into a layer that is still there")
    found: dict[str, _BatchNorm] = {}

    def see(name: str, given: Tensor, output: Tensor) -> None:
        layer = modules[name]
        norm = _NORMS[layer.weight.dim() - 2](output.shape[1], device=output.device, dtype=output.dtype)
        values = output.detach().transpose(0, 1).flatten(1).double()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(values.mean(1))
        norm.running_var.copy_(values.var(1, correction=0))
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)
        found[name] = norm.requires_grad_(layer.weight.requires_grad)

    with evaluating(model), watched_calls({name: modules[name] for name in places}, see):
        feed(model, inputs)
    for name in places:
        if name not in found:
            raise ModelError(f"{name} never runs on the examples, so that its outputs have no statistics")
    for layer, norm in found.items():
        norm.train(modules[layer].training)
    put_modules(model, {norm: found[layer] for layer, norm in places.items()})
    return tuple(places.values())


_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""By the number of dimensions besides examples and features."""


def folds_of(calls: LayerCalls) -> tuple[tuple[Fold, ...], dict[str, str]]:
    """The batch norms that can be folded, in order, and for the others the reason by full name.

    Args:
        calls: of the network; folded batch norms are left out of them.
    """
    folds: list[Fold] = []
    refused: dict[str, str] = {}
    for norm in calls:
        if not isinstance(norm.layer, _BatchNorm):
            continue
        why = calls.oddity(norm) or _without_statistics(norm.layer)
        source, reader = calls.only_source(norm), calls.only_reader(norm)
        if not why:
            why = _behind(calls, source, norm)
            if not why:
                assert source is not None
                folds.append(Fold(norm.name, source.name, behind=True))
            elif not (before := _before(calls, norm, reader)):
                assert reader is not None
                folds.append(Fold(norm.name, reader.name, behind=False))
            elif isinstance(getattr(reader, "layer", None), AFFINE):
                why = f"{why}; {before}"
        if folds and folds[-1].norm == norm.name:
            calls.pass_over(norm)
        else:
            refused[norm.name] = why
    return tuple(folds), refused


def _without_statistics(norm: _BatchNorm) -> str:
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics, and normalises by those of each batch in evaluation, too"
    return ""


def _behind(calls: LayerCalls, source: LayerCall | None, norm: LayerCall) -> str:
    """Why a batch norm cannot go into what it reads; empty if it can."""
    if source is None or not isinstance(source.layer, AFFINE):
        what = "the network's input" if source is None else str(source)
        return f"it reads {what}, which is no linear or convolution layer"
    readers = calls.readers(source)
    if readers != [norm]:
        others = calls.described(each for each in readers if each is not norm)
        return f"the output of {source} is also read by {others}"
    if len(source.shape) != source.layer.weight.dim():  # a convolution without a batch, or a row of tokens
        return f"it normalises another axis than the features of {source}"
    return _odd(calls, source)


def _before(calls: LayerCalls, norm: LayerCall, reader: LayerCall | None) -> str:
    """Why a batch norm cannot go into what reads it; empty if it can."""
    if reader is None or not isinstance(reader.layer, AFFINE):
        return f"it is read by {calls.described(calls.readers(norm))}, and not by one such layer alone"
    layer = reader.layer
    if len(norm.shape) != layer.weight.dim():
        return f"it normalises another axis than the features that {reader} reads"
    if not isinstance(layer, nn.Linear) and bool(_scale_and_shift(norm.layer)[1].any()):
        if isinstance(layer, TRANSPOSED):
            return f"{reader} is transposed, so that a shift before it is none behind it"
        if layer.padding_mode == "zeros" and any(layer._reversed_padding_repeated_twice):
            return f"{reader} pads with zeros behind its shift"
    return _odd(calls, reader)


def _odd(calls: LayerCalls, call: LayerCall) -> str:
    why = calls.oddity(call)
    return f"{call} cannot take it: {why}" if why else ""


def apply_folds(model: nn.Module, folds: tuple[Fold, ...]) -> Callable[[], None]:
    """Put batch norms into the weights and biases of layers; what is returned makes all as it was.

    Raises:
        ModelError: where a folded weight is beyond the precision of its layer; all is as it was.
    """
    undo: list[Callable[[], None]] = []

    def back() -> None:
        for each in reversed(undo):
            each()

    for fold in folds:
        norm, layer = model.get_submodule(fold.norm), model.get_submodule(fold.layer)
        weight, bias = (_folded_behind if fold.behind else _folded_before)(layer, norm)
        if not bool(weight.isfinite().all() and bias.isfinite().all()):
            back()
            raise ModelError(f"{fold.norm} cannot go into {fold.layer}: its weights would not be finite")
        undo.append(_with_values(layer, weight, bias))
        passing = Absent(torch.tensor(PASSED, dtype=torch.uint8, device=weight.device))
        undo.append(put_modules(model, {fold.norm: passing}))
    return back


@torch.no_grad()
def _folded_behind(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer with the batch norm behind it."""
    transposed = isinstance(layer, TRANSPOSED)
    # the weight of a transposed one is (inputs, outputs / groups, ...): each group has scales of its own
    groups = layer.groups if transposed else 1
    tensors = layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    parts = [[None] * groups if each is None else each.double().chunk(groups) for each in tensors]
    found = [
        fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift, transposed)
        for weight, bias, mean, var, scale, shift in zip(*parts, strict=True)
    ]
    weights, biases = zip(*found, strict=True)
    return torch.cat(weights).to(layer.weight.dtype), torch.cat(biases).to(layer.weight.dtype)


@torch.no_grad()
def _folded_before(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer with the batch norm before it."""
    scale, shift = _scale_and_shift(norm)
    weight: Tensor = layer.weight.double()
    own = layer.bias
    if isinstance(layer, TRANSPOSED):
        changed = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        added = weight.new_zeros(layer.out_channels)
    else:
        groups = getattr(layer, "groups", 1)
        rows = torch.unflatten(weight, 0, (groups, -1))  # (groups, outputs, inputs, ...)
        sides = [1] * (weight.dim() - 2)
        changed = (rows * scale.view(groups, 1, -1, *sides)).flatten(0, 1)
        added = (rows * shift.view(groups, 1, -1, *sides)).flatten(2).sum(2).flatten()
    bias = added if own is None else own.double() + added
    return changed.to(layer.weight.dtype), bias.to(layer.weight.dtype)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """(channels,) each, in double precision: what a batch norm does in evaluation mode."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _with_values(layer: Any, weight: Tensor, bias: Tensor) -> Callable[[], None]:
    """Give a layer other values, in the parameters that it has; what is returned puts the old ones back."""
    before, had = layer.weight.detach().clone(), layer.bias
    old = None if had is None else had.detach().clone()
    with torch.no_grad():
        layer.weight.copy_(weight)
        if had is None:
            layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
        else:
            had.copy_(bias)

    @torch.no_grad()
    def back() -> None:
        layer.weight.copy_(before)
        if had is None:
            layer.bias = None
        else:
            had.copy_(old)

    return back
