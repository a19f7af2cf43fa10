"""A multilayer perceptron of any depth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from pydantic import PositiveInt
from torch import Tensor, nn

from prunekit.models.common import Activation, feature_shape, make_activation, size_of, sizes_of


class MLP(nn.Module):
    """Fully connected layers `fc1`, `fc2`, ... with activation modules `act1`, `act2`, ... between them.

    Maps (N, *input_shape) to (N, outputs); after the last layer comes `output_act`, if one is asked for.
    Initial values are PyTorch's own for `nn.Linear`: weights and biases uniform in +-1 / sqrt(fan_in).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        hidden: Sequence[int] = (100,),
        activation: str = "relu",
        output_activation: str = "identity",
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


def mlp(
    input_shape: Sequence[int],
    outputs: int,
    *,
    hidden: tuple[PositiveInt, ...] = (100,),
    activation: Activation = "relu",
    output_activation: Activation = "identity",
) -> MLP:
    """A multilayer perceptron (Rumelhart, Hinton & Williams, Nature 323, 1986).

    Args:
        input_shape: shape of one example; it is flattened.
        outputs: number of outputs.
        hidden: number of units of each hidden layer; empty for a linear model.
        activation: what follows each hidden layer.
        output_activation: what follows the last layer; the networks of the 1980s squash their outputs too.

    Raises:
        InputError: for a size below 1 or an unknown activation.
    """
    return MLP(input_shape, outputs, hidden, activation, output_activation)
