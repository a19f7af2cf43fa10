"""What a hidden unit makes of its weighted sum, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

UnitActivation = Literal["logistic", "tanh", "gaussian"]


def gaussian(x: Tensor) -> Tensor:
    """exp(-x^2 / 2), of any shape: a unit that answers to a strip of its inputs instead of a half space."""
    return torch.exp(-0.5 * x.square())


UNIT_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"logistic": torch.sigmoid, "tanh": torch.tanh, "gaussian": gaussian}
)
