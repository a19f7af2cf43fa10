"""Multilayer perceptrons of any depth, the activations that they may have, and LeNet-300-100."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from prunekit.errors import InputError, instead
from prunekit.settings import size_of, sizes_of


def feature_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one example, without the batch; at least one dimension."""
    shape = sizes_of("input_shape", input_shape)
    if not shape:
        raise InputError("input_shape is empty; it is the shape of one example, such as [784] or [1, 28, 28]")
    return shape


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
        raise InputError(f"there is no activation {name!r}{instead(name, sorted(_MODULES))}")
    return _MODULES[name]()


class MLP(nn.Module):
    """A multilayer perceptron (Rumelhart, Hinton & Williams, Nature 323, 1986).

    Fully connected layers `fc1`, `fc2`, ... with activation modules `act1`, `act2`, ... between them, from
    (N, *input_shape) to (N, outputs); after the last layer comes `output_act`, if one is asked for. Initial
    values are PyTorch's own for `nn.Linear`: weights and biases uniform in +-1 / sqrt(fan_in).

    Args:
        input_shape: shape of one example; it is flattened.
        outputs: number of outputs.
        hidden: number of units of each hidden layer; empty for a linear model.
        activation: what follows each hidden layer.
        output_activation: what follows the last layer; the networks of the 1980s squash their outputs too.

    Raises:
        InputError: for a size below 1 or an unknown activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        hidden: tuple[PositiveInt, ...] = (100,),
        activation: Activation = "relu",
        output_activation: Activation = "identity",
    ) -> None:
        super().__init__()
        inputs = prod(feature_shape(input_shape))
        sizes = (inputs, *sizes_of("hidden", hidden), size_of("outputs", outputs))
        self.flatten = nn.Flatten()
        for number, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            if number > 1:
                self.add_module(f"act{number - 1}", make_activation(activation))
            self.add_module(f"fc{number}", nn.Linear(fan_in, fan_out))
        if output_activation != "identity":
            self.output_act = make_activation(output_activation)

    def reset_parameters(self) -> None:
        """Draw all initial values again."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (N, outputs) for inputs (N, *input_shape) or (N, features)."""
        for layer in self.children():
            x = layer(x)
        return x


class LeNet300100(MLP):
    """LeNet-300-100 (LeCun, Bottou, Bengio & Haffner 1998): 266,200 weights and 410 biases on MNIST.

    `fc1` (300), `act1`, `fc2` (100), `act2`, `fc3`. Activation and initial values are those of the lottery
    ticket hypothesis (Frankle & Carbin 2019, arXiv 1803.03635): ReLU and Gaussian Glorot initialisation.

    Raises:
        InputError: for a size below 1.
    """

    def __init__(self, input_shape: Sequence[int], outputs: int) -> None:
        super().__init__(input_shape, outputs, hidden=(300, 100), activation="relu")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all initial values again: weights from N(0, 2 / (fan_in + fan_out)), biases zero."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
