"""First derivatives of the error behind each cut of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.losses import Loss
from prunekit.units.layers import by_unit, leaves_rows, pointwise, unit_dim, weight_of, with_gains

if TYPE_CHECKING:
    from prunekit.units.chain_runner import ActivationCache


@dataclass(frozen=True)
class Adjoint:
    """Derivatives of the error, summed over a pass's examples, around one link.

    Shapes are those of the pass: (n, ...), or (features, n) for flat links.

    Attributes:
        a: by what comes out of the stages between the link's consumer and the next one.
        z: by the consumer's output.
        x: by the consumer's input.
        slope: flat links: the derivative of what follows z, number by number; None where nothing follows.
        bend: flat links: its second derivative; None where it is 0 everywhere.
    """

    a: Tensor
    z: Tensor
    x: Tensor
    slope: Tensor | None
    bend: Tensor | None


def adjoints(now: ActivationCache, error: Loss, targets: Tensor, first: int = 0) -> dict[int, Adjoint]:
    """One backward pass, segment by segment, to the link at place `first`.

    Args:
        now: the activations; n examples.
        error: the mean over the examples.
        targets: (n, ...).
        first: the links before this place are left out.
    """
    with torch.enable_grad():
        outputs = now.outputs.detach().requires_grad_()
        total = error(outputs, targets) * len(outputs)
        (gradient,) = torch.autograd.grad(total, outputs)
    by_a = gradient.T if now.links[-1].flat else gradient
    found: dict[int, Adjoint] = {}
    for place in range(len(now.links) - 1, first - 1, -1):
        link = now.links[place]
        slope = bend = None
        if link.flat:
            slope, bend = _bends(now, place)
            by_z = by_a if slope is None else by_a * slope
            by_x = weight_of(link.consumer).T @ by_z
        else:
            by_z = _pull_back(now.between(place), now.z[place], by_a)
            by_x = _pull_back(link.consumer.run, now.x[place], by_z)
        found[place] = Adjoint(by_a, by_z, by_x, slope, bend)
        gains = now.kept.get(link.group.name)
        if gains is not None:
            by_x = with_gains(by_x, link.group, 0 if link.flat else unit_dim(link.consumer, by_x), gains)
        by_a = by_x.T if link.flat and place and not now.links[place - 1].flat else by_x
    return found


def _pull_back(run: Callable[[Tensor], Tensor], x: Tensor, by_y: Tensor) -> Tensor:
    """The derivative by x, from that by y = run(x)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (by_x,) = torch.autograd.grad(run(x), x, by_y)
    return by_x


def _bends(now: ActivationCache, place: int) -> tuple[Tensor | None, Tensor | None]:
    """First and second derivative of the pointwise functions behind a flat link, at z."""
    stages = [stage for stage in now.links[place].between if not leaves_rows(stage)]
    z = now.z[place].detach()
    if not stages:
        return None, None
    if len(stages) == 1 and pointwise(stages[0]) is torch.sigmoid_:
        a = torch.sigmoid(z)
        slope = a * (1 - a)
        return slope, slope * a.mul_(-2).add_(1)
    with torch.enable_grad():
        z.requires_grad_()
        a = z
        for stage in stages:
            a = stage.run(a)
        (slope,) = torch.autograd.grad(a.sum(), z, create_graph=True)
        bend = torch.autograd.grad(slope.sum(), z, allow_unused=True)[0] if slope.requires_grad else None
    return slope.detach(), bend


def by_gain(now: ActivationCache, place: int, by_x: Tensor) -> Tensor:
    """(units,) float64: the sum over examples and positions of the unit's values times `by_x`."""
    link, x = now.links[place], now.x[place]
    dim = 0 if link.flat else unit_dim(link.consumer, x)
    product = by_unit(x * by_x, link.group, dim).movedim(dim, 0)
    return product.flatten(1).sum(1, dtype=torch.float64)
