"""The network that cascade correlation grows, and the activations that its units may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from prunekit.errors import InputError
from prunekit.limits import WHOLE, whole

UnitActivation = Literal["logistic", "tanh", "gaussian"]


def gaussian(x: Tensor) -> Tensor:
    """exp(-x^2 / 2), of any shape: a unit that answers to a strip of its inputs instead of a half space."""
    return torch.exp(-0.5 * x.square())


UNIT_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"logistic": torch.sigmoid, "tanh": torch.tanh, "gaussian": gaussian}
)


class CascadeNetwork(nn.Module):
    """Hidden units of which each reads all inputs and all earlier units; the outputs read everything.

    Maps (N, *shape) with `inputs` features an example to (N, outputs). Every unit is a linear layer with one
    output, `units.0`, `units.1`, ..., and `output` is the last one, so that the names of the state dict do
    not depend on how many follow, and whatever prunes, counts or saves linear layers works here too.

    All values are zeros at first: `grow` or `load_state_dict` fills them. The weights of the units do not
    require gradients, as a unit is frozen once it is installed; `requires_grad_()` thaws them.

    Source: Fahlman & Lebiere (1990), The Cascade-Correlation Learning Architecture, NIPS 2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        units: int = 0,
        *,
        activation: str = "logistic",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Build a network of zeros.

        Raises:
            InputError: for sizes that are no counts (at least 1 input, 1 output, 0 units), or an unknown
                activation.
        """
        super().__init__()
        for name, size, least in (("inputs", inputs, 1), ("outputs", outputs, 1), ("units", units, 0)):
            whole(name, size, least, WHOLE)
        if activation not in UNIT_ACTIVATIONS:
            raise InputError(f"activation must be one of {', '.join(UNIT_ACTIVATIONS)}, not {activation!r}")
        self.inputs = inputs
        self.outputs = outputs
        self.activation = activation
        self.output = _zeros(inputs, outputs, dtype=dtype, device=device)
        self.units = nn.ModuleList()
        for number in range(units):
            self.install(self.output.weight.new_zeros(inputs + number), self.output.bias.new_zeros(()))

    def extra_repr(self) -> str:
        """The sizes and the activation."""
        return (
            f"inputs={self.inputs}, outputs={self.outputs}, units={len(self.units)}, "
            f"activation={self.activation!r}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (N, outputs) for inputs (N, *shape)."""
        return self.output(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """The inputs (N, *shape) flattened, followed by the values of all units: (N, inputs + units)."""
        features = x.flatten(1)
        for number in range(len(self.units)):
            features = self.extend(features, number)
        return features

    def extend(self, features: Tensor, number: int) -> Tensor:
        """Features (N, inputs + number) with the value of the unit of that number behind them."""
        value = UNIT_ACTIVATIONS[self.activation](self.units[number](features))
        return torch.cat([features, value], 1)

    @torch.no_grad()
    def install(self, weight: Tensor, bias: Tensor) -> None:
        """Add a frozen unit. The outputs start at zero weight from it, so what they compute is unchanged.

        Args:
            weight: (inputs + units,), in the order of `features`.
            bias: a scalar.

        Raises:
            InputError: for other shapes; the network is then unchanged.
        """
        fan_in = self.inputs + len(self.units)
        if weight.shape != (fan_in,) or bias.numel() != 1:
            raise InputError(
                f"unit {len(self.units)} needs a weight ({fan_in},) and a scalar bias, "
                f"not {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        old = self.output
        unit = _zeros(fan_in, 1, dtype=old.weight.dtype, device=old.weight.device)
        unit.weight.copy_(weight[None])
        unit.bias.copy_(bias.reshape(1))
        self.units.append(unit.requires_grad_(False))
        self.output = _zeros(fan_in + 1, self.outputs, dtype=old.weight.dtype, device=old.weight.device)
        self.output.weight[:, :-1] = old.weight
        self.output.bias.copy_(old.bias)


def _zeros(
    fan_in: int, fan_out: int, *, dtype: torch.dtype | None, device: torch.device | str | None
) -> nn.Linear:
    """A linear layer of zeros; its own initial values would be drawn from torch's global generator."""
    layer = skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, fan_in, fan_out, dtype=dtype, device=device or "cpu"
    )
    assert isinstance(layer, nn.Linear)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
