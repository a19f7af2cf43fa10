"""The hard-concrete distribution of gates between 0 and 1, both of which it takes with a probability.

s = sigmoid((log u - log(1 - u) + a) / beta) for u uniform in (0, 1), stretched to s (zeta - gamma) + gamma
and clamped to [0, 1]; the location a, called log alpha, says how far the gate is open. All functions work on
tensors of any shape, one gate per entry, and have gradients.

Source: Louizos, Welling, Kingma 2018, arXiv 1712.01312, equations 10 to 13.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA = 2 / 3
"""The temperature."""

GAMMA, ZETA = -0.1, 1.1
"""The ends of the interval to which the concrete distribution is stretched."""

_SHIFT = BETA * math.log(-GAMMA / ZETA)


def sample(location: Tensor, uniform: Tensor) -> Tensor:
    """Gates for uniform numbers in (0, 1), with a gradient where they are neither 0 nor 1.

    Args:
        location: log alpha of each gate.
        uniform: of the same shape, or with dimensions in front for several samples.
    """
    stretched = torch.sigmoid((torch.logit(uniform) + location) / BETA) * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def open_probability(location: Tensor) -> Tensor:
    """P(gate != 0), whose sum is the expected number of open gates (equation 12)."""
    return torch.sigmoid(location - _SHIFT)


def location_of(probability: Tensor) -> Tensor:
    """The location at which a gate is open with a probability: the inverse of `open_probability`.

    0.5 gives -1.598...: a gate of location 0 is open with the probability 0.83.
    """
    return torch.logit(probability) + _SHIFT


def final_gate(location: Tensor) -> Tensor:
    """The gate that is used after the training (equation 13): 0 below a location of -2.40, 1 above 2.40."""
    return (torch.sigmoid(location) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
