"""Sizes, activation functions and initial values that networks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from torch import nn

from prunekit.errors import InputError
from prunekit.limits import whole

MAX_SIZE, MAX_LAYERS = 2**31 - 1, 1000
"""The largest size, and the most sizes or layers, that a model is built with: a file may name any."""


def size_of(what: str, size: int) -> int:
    """A size, in [1, MAX_SIZE]; `what` names it in the error."""
    return whole(what, size, 1, MAX_SIZE)


def sizes_of(what: str, sizes: Iterable[int]) -> tuple[int, ...]:
    """At most MAX_LAYERS sizes, each in [1, MAX_SIZE]; `what` names them in the error."""
    checked = tuple(sizes)
    if len(checked) > MAX_LAYERS:
        raise InputError(f"{what}: there are {len(checked):,} of them; at most {MAX_LAYERS:,} are allowed")
    return tuple(size_of(f"{what}[{place}]", size) for place, size in enumerate(checked))


def feature_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one example, without the batch; at least one dimension."""
    shape = sizes_of("input_shape", input_shape)
    if not shape:
        raise InputError("input_shape is empty; it is the shape of one example, such as [784] or [1, 28, 28]")
    return shape


def image_shape(input_shape: Sequence[int], *, smallest: int) -> tuple[int, int, int]:
    """(channels, height, width) of an image of at least `smallest` pixels a side."""
    shape = feature_shape(input_shape)
    if len(shape) != 3:
        raise InputError(f"input_shape must be [channels, height, width] for this model, got {list(shape)}")
    channels, height, width = shape
    if min(height, width) < smallest:
        raise InputError(
            f"images must be at least {smallest} x {smallest} for this model, got {height} x {width}"
        )
    return channels, height, width


Activation = Literal["elu", "gelu", "identity", "leaky_relu", "relu", "sigmoid", "silu", "softplus", "tanh"]

_MODULES: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "identity": nn.Identity,
        "leaky_relu": nn.LeakyReLU,
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "silu": nn.SiLU,
        "softplus": nn.Softplus,
        "tanh": nn.Tanh,
    }
)


def make_activation(name: str) -> nn.Module:
    """A fresh module of the named activation, PyTorch's defaults; `sigmoid` is the logistic function.

    Raises:
        InputError: if there is no activation of that name.
    """
    if name not in _MODULES:
        raise InputError(f"there is no activation {name!r}; names are: {', '.join(sorted(_MODULES))}")
    return _MODULES[name]()


def draw_he_normal(model: nn.Module) -> None:
    """Draw all initial values of `model` (He et al. 2015, arXiv 1502.01852, equation 10).

    Weights from N(0, 2 / fan_in), biases zero; batch norms go back to scale 1, shift 0 and fresh statistics.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
