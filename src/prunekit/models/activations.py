"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from torch import nn

from prunekit.errors import InputError

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
