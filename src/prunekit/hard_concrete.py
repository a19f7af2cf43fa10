"""The hard-concrete distribution of gates between 0 and 1, both of which it takes with a probability.

s = sigmoid((log u - log(1 - u) + a) / beta) for u uniform in (0, 1), stretched to s (zeta - gamma) + gamma
and clamped to [0, 1]; the location a, called log alpha, says how far the gate is open. All functions work on
tensors of any shape, one gate per entry, and have gradients. A Lagrangian leads the share of open gates.

Sources: Louizos, Welling, Kingma 2018, arXiv 1712.01312, equations 10 to 13; the Lagrangian: Xia, Zhong, Chen
2022, arXiv 2204.00408.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
    gates: Tensor = _Sample.apply(location, uniform)  # type: ignore[no-untyped-call]
    return gates


class _Sample(torch.autograd.Function):
    """The gates and their gradient in as little memory as they take: with gates on weights it is the time."""

    @staticmethod
    def forward(ctx: Any, location: Tensor, uniform: Tensor) -> Tensor:
        s = torch.logit(uniform).add_(location).div_(BETA).sigmoid_()
        ctx.save_for_backward(s)
        ctx.shape = location.shape
        return (s * (ZETA - GAMMA)).add_(GAMMA).clamp_(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (s,) = ctx.saved_tensors
        found = (s * (ZETA - GAMMA)).add_(GAMMA)
        torch.ops.aten.hardtanh_backward.grad_input(gradient, found, 0.0, 1.0, grad_input=found)
        found.mul_(ZETA - GAMMA)
        torch.ops.aten.sigmoid_backward.grad_input(found, s, grad_input=found)
        return found.div_(BETA).sum_to_size(ctx.shape), None


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


class Lagrangian(nn.Module):
    """The penalty l1 (s - t) + (c + l2) (s - t)^2 on a share s, which leads it to a wanted one.

    The target t falls linearly from 1 to the wanted share; the multipliers rise by the excess s - t and by
    its square.

    Attributes:
        multipliers: (2,) float64, l1 and l2.
    """

    multipliers: Tensor

    def __init__(self, wanted: float, *, ramp: float, rates: tuple[float, float], curvature: float) -> None:
        """Multipliers of 0.

        Args:
            wanted: the share in the end.
            ramp: the steps over which the target falls.
            rates: how fast each multiplier rises.
            curvature: c.
        """
        super().__init__()
        self.register_buffer("multipliers", torch.zeros(2, dtype=torch.float64))
        self.wanted, self.ramp, self.rates, self.curvature = wanted, ramp, rates, curvature

    def forward(self, share: Tensor, step: int) -> Tensor:
        """The penalty at a step, with its gradient; afterwards the multipliers rise."""
        excess = share - (1 - (1 - self.wanted) * min(1.0, step / self.ramp))
        linear, squared = self.multipliers.tolist()
        over = float(excess.detach())
        self.multipliers += self.multipliers.new_tensor([self.rates[0] * over, self.rates[1] * over**2])
        return linear * excess + (self.curvature + squared) * excess.square()
