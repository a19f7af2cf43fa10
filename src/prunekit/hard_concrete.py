"""The hard-concrete distribution of gates between 0 and 1, both of which it takes with a probability.

s = sigmoid((log u - log(1 - u) + a) / beta) for u uniform in (0, 1), stretched to s (zeta - gamma) + gamma
and clamped to [0, 1]; the location a, called log alpha, says how far the gate is open. All functions work on
tensors of any shape, one gate per entry, and have gradients. A Lagrangian leads the share of open gates.

Sources: Louizos, Welling, Kingma 2018, arXiv 1712.01312, equations 10 to 13; the Lagrangian: Xia, Zhong, Chen
2022, arXiv 2204.00408.
"""

from __future__ import annotations

import functools
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


BLOCK, POOL = 2**18, 2**20
"""Entries that follow each other in the pool of noise, and the places where they may begin."""


@functools.cache
def _pool(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The quantiles (i + 1/2) / POOL of the logistic distribution over BETA in a random order, as a ring.

    A place of it that is drawn at random has this distribution but for steps of 1 / POOL, and the same place
    in every process.
    """
    order = torch.randperm(POOL, generator=torch.Generator().manual_seed(0))
    pool = torch.logit((order.double() + 0.5) / POOL) / BETA
    return torch.cat([pool, pool[:BLOCK]]).to(device, dtype)


def noise(like: Tensor) -> Tensor:
    """(log u - log(1 - u)) / beta for uniform u, of the shape of a tensor, from torch's global generator.

    Each entry alone has the distribution. All are read from a pool that is made once, from a random place on
    for each block of entries, since random numbers and logarithms for every gate cost more than all else in a
    training step with gates on weights. The table of noise: Salimans et al. 2017, arXiv 1703.03864.
    """
    pool, number = _pool(like.dtype, like.device), like.numel()
    begins = torch.randint(POOL, (-(-number // BLOCK),)).tolist()
    if len(begins) == 1:
        return pool[begins[0] : begins[0] + number].view(like.shape)
    blocks = [pool[begin : begin + BLOCK] for begin in begins]
    blocks[-1] = blocks[-1][: number - BLOCK * (len(begins) - 1)]
    return torch.cat(blocks).view(like.shape)


def sample(location: Tensor, noise: Tensor) -> Tensor:
    """Gates for some noise, with a gradient where they are neither 0 nor 1.

    Args:
        location: log alpha of each gate.
        noise: as of `noise`, of the same shape, or with dimensions in front for several samples.
    """
    gates: Tensor = _Sample.apply(location, noise)  # type: ignore[no-untyped-call]
    return gates


class _Sample(torch.autograd.Function):
    """The gates and their gradient in as few passes and as little memory as they take: with gates on weights
    these are the time.
    """

    @staticmethod
    def forward(ctx: Any, location: Tensor, noise: Tensor) -> Tensor:
        s = torch.add(noise, location, alpha=1 / BETA).sigmoid_()
        gates = s.mul_(ZETA - GAMMA).add_(GAMMA).clamp_(0, 1)
        ctx.save_for_backward(gates)
        ctx.shape = location.shape
        return gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (gates,) = ctx.saved_tensors
        found = torch.ops.aten.hardtanh_backward(gradient, gates, 0.0, 1.0)
        s = (gates - GAMMA).div_(ZETA - GAMMA)
        torch.ops.aten.sigmoid_backward.grad_input(found, s, grad_input=found)
        return found.mul_((ZETA - GAMMA) / BETA).sum_to_size(ctx.shape), None


def open_probability(location: Tensor) -> Tensor:
    """P(gate != 0), whose sum is the expected number of open gates (equation 12)."""
    return (location - _SHIFT).sigmoid_()


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
        """What has the penalty's gradient: the share times the derivative; then the multipliers rise."""
        excess = float(share.detach()) - (1 - (1 - self.wanted) * min(1.0, step / self.ramp))
        linear, squared = self.multipliers.tolist()
        rise = [self.rates[0] * excess, self.rates[1] * excess**2]
        self.multipliers += self.multipliers.new_tensor(rise)
        return share * (linear + 2 * (self.curvature + squared) * excess)
