"""Small problems for cascades, and the network once more in numpy, from the paper's description."""

import math

import numpy as np
import torch
from torch import Tensor

NUMPY_ACTIVATIONS = {
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "gaussian": lambda x: np.exp(-x * x / 2),
}


def parity(bits: int) -> tuple[Tensor, Tensor]:
    """All patterns of +-1, and whether the number of ones is odd, as classes."""
    patterns = [[float(bit) for bit in format(number, f"0{bits}b")] for number in range(2**bits)]
    x = torch.tensor(patterns, dtype=torch.float64)
    return 2 * x - 1, x.sum(1).long() % 2


def two_spirals() -> tuple[Tensor, Tensor]:
    """The 194 points of Lang & Witbrock (1988)."""
    i = torch.arange(97, dtype=torch.float64)
    radius, angle = 6.5 * (104 - i) / 104, i * math.pi / 16
    points = torch.stack([radius * angle.sin(), radius * angle.cos()], 1)
    return torch.cat([points, -points]), torch.arange(2).repeat_interleave(97)


def curves(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A regression of 3 values on 2 features, in float64."""
    x = 2 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    y = torch.stack([(3 * x[:, 0]).sin(), x[:, 0] * x[:, 1], x[:, 1].square() + x[:, 0]], 1)
    return x, y


def numpy_values(state: dict[str, Tensor], x: np.ndarray, activation: str) -> np.ndarray:
    """The values of all units, (N, units), from a state dict."""
    values: list[np.ndarray] = []
    while f"units.{len(values)}.weight" in state:
        weight = state[f"units.{len(values)}.weight"].numpy()[0]
        total = np.full(len(x), float(state[f"units.{len(values)}.bias"]))
        for source, w in zip([*x.T, *values], weight, strict=True):
            total = total + w * source
        values.append(NUMPY_ACTIVATIONS[activation](total))
    return np.stack(values, 1) if values else np.zeros((len(x), 0))


def numpy_outputs(state: dict[str, Tensor], x: np.ndarray, activation: str) -> np.ndarray:
    everything = np.concatenate([x, numpy_values(state, x, activation)], 1)
    return everything @ state["output.weight"].numpy().T + state["output.bias"].numpy()


def numpy_s(values: np.ndarray, errors: np.ndarray) -> float:
    """S of one unit with values (N,), by the loops of the definition."""
    total = 0.0
    for o in range(errors.shape[1]):
        inner = 0.0
        for p in range(len(values)):
            inner += (values[p] - values.mean()) * (errors[p, o] - errors[:, o].mean())
        total += abs(inner)
    return total
