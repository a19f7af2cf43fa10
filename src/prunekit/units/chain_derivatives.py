"""First derivatives of the error behind each cut of a chain, and the exact second one by a unit's gain.

A gain moves the consumer's pre-activation along a line, so that the second derivative is that of the error
along this line. Behind a flat link it is a sum over the layers: for each activation the error's derivative by
its output times its own second derivative times the square of the line's direction there, and at the end the
error's own second derivative along the direction. Only the direction has to be carried to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.losses import Loss, squared_error
from prunekit.units.chain_layers import (
    by_unit,
    contributions,
    leaves_rows,
    pointwise,
    unit_dim,
    weight_of,
    weights_by_unit,
    with_gains,
)
from prunekit.units.runner import CrossEntropyDelta, LossDelta, absolute_error
from prunekit.units.suffix import run_behind

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


def second_derivatives(
    now: ActivationCache,
    place: int,
    units: Tensor,
    around: Mapping[int, Adjoint],
    judge: LossDelta,
    block_bytes: int,
) -> Tensor:
    """(C,) float64: d2E/dgain2 at gain 1, summed over the pass's examples.

    Args:
        now: the activations.
        place: which link the units belong to.
        units: (C,) the units wanted.
        around: the derivatives around the links from `place` on.
        judge: judges the pass's outputs.
        block_bytes: memory for the directions of one block of units.
    """
    link = now.links[place]
    if not link.flat:
        return _of_any(now, place, units, judge, block_bytes)
    if place == len(now.links) - 1 and link.group.repeat == 1 and _has_diagonal(judge):
        return _of_last(now, units, around[place], judge)
    found = torch.zeros(len(units), dtype=torch.float64, device=units.device)
    n = now.z[place].shape[1]
    widest = max(len(z) for z in now.z[place:]) * 2
    together = max(1, block_bytes // (now.z[place].element_size() * widest * n))
    for start in range(0, len(units), together):
        which = slice(start, start + together)
        found[which] = _of_flat(now, place, units[which], around, judge)
    return found


def _of_flat(
    now: ActivationCache, place: int, units: Tensor, around: Mapping[int, Adjoint], judge: LossDelta
) -> Tensor:
    """The sum over the layers, with directions (C, features, n)."""
    link = now.links[place]
    weights = weights_by_unit(link.consumer, link.group)[units]  # (C, features, repeat)
    x = torch.unflatten(now.x[place], 0, (link.group.units, link.group.repeat))[units]  # (C, repeat, n)
    found = torch.zeros(len(units), dtype=torch.float64, device=units.device)
    direction: Tensor | None = None
    if link.group.repeat == 1 and place + 1 < len(now.links):
        # the direction W[k] x[n] has rank one, so that neither it nor its square has to be written out
        at = around[place]
        if at.bend is not None:
            found += _squares(x[:, 0], at.a * at.bend, weights[:, :, 0])
        passed = _kept_weight(now, place + 1).unsqueeze(0) * weights.transpose(1, 2)  # (C, next, features)
        slope = torch.ones_like(now.z[place]) if at.slope is None else at.slope
        direction = torch.unflatten(passed.flatten(0, 1) @ slope, 0, passed.shape[:2]).mul_(x)
        place += 1
    if direction is None:
        direction = torch.bmm(weights, x)
    for number in range(place, len(now.links)):
        at = around[number]
        if at.bend is not None:
            found += _dots(direction.square(), at.a * at.bend)
        if at.slope is not None:
            direction = direction * at.slope
        if number + 1 < len(now.links):
            direction = torch.matmul(_kept_weight(now, number + 1), direction)
    return found + _of_error(judge, direction)


def _kept_weight(now: ActivationCache, place: int) -> Tensor:
    """The weights of the consumer at `place`, 0 from units that are off."""
    link = now.links[place]
    kept = now.kept.get(link.group.name)
    weight = weight_of(link.consumer)
    return weight if kept is None else weight * kept.to(weight.dtype)


def _squares(x: Tensor, diagonal: Tensor, weights: Tensor) -> Tensor:
    """(C,): sum over k and n of diagonal[k, n] (weights[c, k] x[c, n])^2."""
    return ((x.square() @ diagonal.T) * weights.square()).double().sum(1)


def _dots(variants: Tensor, by: Tensor) -> Tensor:
    """(C,): sum of variants (C, features, n) times by (features, n)."""
    return torch.mv(variants.flatten(1), by.reshape(-1)).double()


def _has_diagonal(judge: LossDelta) -> bool:
    return judge.error in (squared_error, absolute_error) or isinstance(judge, CrossEntropyDelta)


def error_diagonal(judge: LossDelta) -> Tensor:
    """(K, n): the second derivative of each example's error by each output, for the errors of `ERRORS`.

    For cross-entropy that is p (1 - p), the diagonal of the softmax's Hessian diag(p) - p p^T.
    """
    outputs = judge.outputs.flatten(1).T
    if isinstance(judge, CrossEntropyDelta):
        p = torch.softmax(outputs, 0)
        return p * (1 - p)
    return torch.full_like(outputs, 2.0 if judge.error is squared_error else 0.0)


def _of_last(now: ActivationCache, units: Tensor, at: Adjoint, judge: LossDelta) -> Tensor:
    """Closed form on the last link: products of matrices and nothing written out per unit."""
    link, x = now.links[-1], now.x[-1][units]
    weights = weights_by_unit(link.consumer, link.group)[units, :, 0]
    p = torch.softmax(judge.outputs.T, 0) if isinstance(judge, CrossEntropyDelta) else None
    # of the softmax's Hessian, diag(p) is part of the diagonal here and p p^T is subtracted below
    diagonal = p if p is not None else error_diagonal(judge)
    if at.slope is not None:
        diagonal = diagonal * at.slope.square()
    if at.bend is not None:
        diagonal = diagonal + at.a * at.bend
    found = _squares(x, diagonal, weights)
    if p is not None:
        moved = weights @ (p if at.slope is None else p * at.slope)  # (C, n): sum over k of p_k W_k
        found -= (moved * x).square_().sum(1).double()
    return found


def _of_error(judge: LossDelta, direction: Tensor) -> Tensor:
    """(C,) float64: the error's second derivative along directions (C, K, n) of the outputs."""
    if isinstance(judge, CrossEntropyDelta):
        p = torch.softmax(judge.outputs.T, 0)
        mean = (p * direction).sum(1, keepdim=True)
        return _dots((direction - mean).square_(), p)
    if _has_diagonal(judge):
        return _dots(direction.square(), error_diagonal(judge))
    directions = torch.unflatten(direction.transpose(1, 2), 2, judge.outputs.shape[1:])
    return along(_Total(judge.error, judge.targets), judge.outputs, directions)


class _Total:
    """The error summed over the examples, behind whatever lies before it."""

    def __init__(self, error: Loss, targets: Tensor, now: ActivationCache | None = None, place: int = 0):
        self._error, self._targets, self._now, self._place = error, targets, now, place

    def __call__(self, y: Tensor) -> Tensor:
        outputs = y if self._now is None else run_behind(self._now, self._place, y, in_place=False)
        return self._error(outputs, self._targets) * len(outputs)


def along(
    function: Callable[[Tensor], Tensor],
    at: Tensor,
    directions: Tensor,
    batched: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]] = torch.func.vmap,
) -> Tensor:
    """(C,) float64: the second derivative of a function along each of the directions (C, ...).

    Forward over reverse: what depends on the point alone is computed once for all directions, where `batched`
    runs them at once.
    """
    gradient = torch.func.grad(function)

    def of_one(direction: Tensor) -> Tensor:
        change = torch.func.jvp(gradient, (at,), (direction,))[1]
        return (change * direction).double().sum()

    # torch.func differentiates under no_grad as well, and then follows no parameters
    return batched(of_one)(directions)


def _of_any(now: ActivationCache, place: int, units: Tensor, judge: LossDelta, block_bytes: int) -> Tensor:
    """By automatic differentiation of what lies behind the consumer."""
    link, x, z = now.links[place], now.x[place], now.z[place].detach()
    function = _Total(judge.error, judge.targets, now, place)
    # a dual number each way through the layers, for every direction
    together = max(1, block_bytes // (8 * z.element_size() * z.numel()))
    found = [
        along(function, z, contributions(link.consumer, link.group, x, some))
        for some in torch.split(units, together)
    ]
    return torch.cat(found)
