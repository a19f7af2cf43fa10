"""The bound on the output error of a pruned network by its layers' errors, beside the measured error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, gcd, prod, sqrt

import torch
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError
from prunekit.graph import Chain, Stage, chain_of
from prunekit.graph.chain import NORMS
from prunekit.graph.rows import LAYERS, Layer
from prunekit.modes import evaluating
from prunekit.targets import device_of


def error_bound(layer_errors: Sequence[float] | Tensor, norms: Sequence[float] | Tensor) -> Tensor:
    """What each layer's error adds to the output's error at most; the bound is the sum.

    Dong, Chen and Pan (2017, arXiv 1705.07565, theorem 3.2). Layer k alone, its weights changed and its
    inputs those of the old network, is off by sqrt(2 E_k) in the root of the mean squared distance. The
    layers behind it stretch that by at most the Frobenius norm of their **new** weights each; activations
    that move no two numbers apart (ReLU, tanh, max pooling without overlap) do not stretch it. So

        sqrt(mean over samples of ||new outputs - old outputs||^2) <= sum_k sqrt(2 E_k) prod_{l > k} ||W_l||.

    Args:
        layer_errors: front to back, E_k = (1/2) mean over samples of the squared change of the layer's
            pre-activation, summed over its outputs: what the losses of an `RowElimination` add up to.
        norms: front to back, the norm of each layer's new weights: Frobenius as in the paper; any other that
            is no less than the spectral norm of the linear map does as well.

    Returns:
        (layers,) float64.

    Raises:
        InputError: if there are not as many norms as errors, or one of them is negative or NaN.
    """
    errors = torch.as_tensor(layer_errors, dtype=torch.float64)
    sizes = torch.as_tensor(norms, dtype=torch.float64)
    if errors.dim() != 1 or errors.shape != sizes.shape:
        raise InputError(f"one norm for each layer error is needed, got {sizes.numel()} for {errors.numel()}")
    for name, each in (("layer errors", errors), ("norms", sizes)):
        if not bool((each >= 0).all()):
            raise InputError(f"{name} must be >= 0, got {each.tolist()}")
    through = torch.cat([sizes[1:], sizes.new_ones(min(1, len(sizes)))])
    return (2 * errors).sqrt() * through.flip(0).cumprod(0).flip(0)


@dataclass(frozen=True)
class LayerError:
    """One layer of a pruned network beside the same layer of the dense one.

    Attributes:
        layer: its full name.
        error: E, half of the mean over examples of the squared change of the layer's outputs, given the
            inputs that it has in the dense network.
        bound: what E adds at most to the root mean squared distance of the network's outputs.
        measured: what it adds: the distance between the outputs of the network whose layers before this one
            are dense and those from it on pruned, and the outputs of the one where it is dense as well.
    """

    layer: str
    error: float
    bound: float
    measured: float


@dataclass(frozen=True)
class LayerErrors:
    """All layers, front to back, and the network as a whole.

    Attributes:
        layers: one by one.
        bound: the sum of their bounds: the outputs are no further away than that.
        measured: the root mean squared distance of the outputs of both networks.
    """

    layers: tuple[LayerError, ...]
    bound: float
    measured: float


@torch.no_grad()
def layer_errors(
    dense: nn.Module, pruned: nn.Module, inputs: Tensor, *, batch_size: int = 256
) -> LayerErrors:
    """The bound of layer-wise OBS beside what is measured, per layer.

    Dong, Chen and Pan (2017, arXiv 1705.07565), theorem 3.2: each layer's own error, times the Frobenius
    norms of the layers behind it. A convolution counts with its norm times the root of the number of patches
    that one input is part of. What stands between the layers must move no two numbers apart: ReLU, tanh,
    sigmoid, average pooling, max pooling without overlap; this is not checked.

    Args:
        dense: linear and convolution layers in a row.
        pruned: the same network with other weights, not yet shrunk.
        inputs: (N, ...) examples.
        batch_size: examples in one pass; the result does not depend on it beyond rounding.

    Raises:
        InputError: if the networks are not the same but for their values, or there are no examples.
        ModelError: naming what makes the network no chain of layers, a batch norm between them, or a
            convolution whose padding repeats its inputs.
    """
    if not len(inputs):
        raise InputError("there are no examples to measure errors on")
    old, new = (chain_of(model, inputs[:2]) for model in (dense, pruned))
    places = _places(old, new)
    layers = [_module(new.stages[place]) for place in places]
    errors = torch.zeros(len(places), dtype=torch.float64)
    steps = torch.zeros(len(places) + 1, dtype=torch.float64)
    with evaluating(dense), evaluating(pruned):
        for batch in torch.split(inputs.to(device_of(dense)), batch_size):
            x, reached, outputs = batch, 0, [_run(new.stages, batch)]
            for number, place in enumerate(places):
                x = _run(old.stages[reached:place], x)
                before, after = old.stages[place].run(x), new.stages[place].run(x)
                errors[number] += _squares(before, after) / 2
                outputs.append(_run(new.stages[place + 1 :], before))
                x, reached = before, place + 1
            for number, (one, other) in enumerate(pairwise(outputs)):
                steps[number] += _squares(one, other)
            steps[-1] += _squares(outputs[0], outputs[-1])
    errors, measured = errors / len(inputs), (steps / len(inputs)).sqrt()
    bounds = error_bound(errors, [_norm(layer) for layer in layers])
    found = zip(places, errors.tolist(), bounds.tolist(), measured.tolist(), strict=False)
    return LayerErrors(
        tuple(LayerError(old.stages[place].name, *values) for place, *values in found),
        float(bounds.sum()),
        float(measured[-1]),
    )


def _places(old: Chain, new: Chain) -> list[int]:
    """Where the layers stand in the chains, once these have been seen to fit."""
    if [stage.name for stage in old.stages] != [stage.name for stage in new.stages]:
        raise InputError("the pruned network is not the dense one with other weights: their layers differ")
    places = []
    for place, (one, other) in enumerate(zip(old.stages, new.stages, strict=True)):
        if isinstance(one.module, NORMS):
            raise ModelError(
                f"{one.name!r} is a batch norm, which stretches errors by an amount of its own: the bound is "
                "for networks without"
            )
        if not isinstance(one.module, LAYERS):
            continue
        layer = _module(other)
        if one.module.weight.shape != layer.weight.shape:
            raise InputError(
                f"{one.name!r} has weights {tuple(one.module.weight.shape)} in the dense network and "
                f"{tuple(layer.weight.shape)} in the pruned one: compare it before it is shrunk"
            )
        places.append(place)
    return places


def _module(stage: Stage) -> Layer:
    assert isinstance(stage.module, LAYERS)
    return stage.module


def _run(stages: Sequence[Stage], x: Tensor) -> Tensor:
    for stage in stages:
        x = stage.run(x)
    return x


def _squares(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).square().sum())


def _norm(layer: Layer) -> float:
    """How far the layer moves apart two inputs at distance 1, at most."""
    norm = float(torch.linalg.vector_norm(layer.weight.double()))
    if isinstance(layer, nn.Linear):
        return norm
    if layer.padding_mode not in ("zeros", "circular"):
        raise ModelError(
            f"a convolution whose padding is {layer.padding_mode!r} repeats inputs: the bound is for padding "
            "with zeros"
        )
    overlap = prod(
        ceil(size * gcd(step, apart) / step)
        for size, step, apart in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    )
    return norm * sqrt(overlap)
