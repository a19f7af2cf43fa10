"""First derivatives of the error behind each cut of a chain, and the exact second one by a unit's gain.

A gain moves the consumer's pre-activation along a line, so that the second derivative is that of the error
along this line. Behind a flat link it is a sum over the layers: for each activation the error's derivative by
its output times its own second derivative times the square of the line's direction there, and at the end the
error's own second derivative along the direction. Only the direction has to be carried to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.graph.chain import in_place, unit_dim, weight_of, weights_by_unit, with_gains
from prunekit.units.chain_suffix import contributions, run_behind
from prunekit.units.runner import CrossEntropyDelta, LossDelta

if TYPE_CHECKING:
    from prunekit.units.chain_runner import ActivationCache


@dataclass(frozen=True)
class Adjoint:
    """Derivatives of the error, summed over a pass's examples, around one link.

    Attributes:
        first: (units,) float64: by the gains of its units.
        a: by what comes out of the stages between the link's consumer and the next one, of the shape that
            the pass has there: (n, ...), or (features, n) for flat links.
        slope: flat links: the derivative of what follows z, number by number; None where nothing follows.
        bend: flat links: its second derivative; None where it is 0 everywhere.
    """

    first: Tensor
    a: Tensor
    slope: Tensor | None
    bend: Tensor | None


def adjoints(now: ActivationCache, first: int = 0) -> dict[int, Adjoint]:
    """One backward pass of n examples, segment by segment, to the link at place `first`."""
    judge = now.judge  # which refuses what the error cannot be taken of
    with torch.enable_grad():
        outputs = now.outputs.detach().requires_grad_()
        total = _total(judge, outputs)
        (gradient,) = torch.autograd.grad(total, outputs)
    by_a = gradient.T if now.links[-1].flat else gradient
    found: dict[int, Adjoint] = {}
    for place in range(len(now.links) - 1, first - 1, -1):
        link, x = now.links[place], now.x[place]
        slope = bend = None
        if link.flat:
            slope, bend = _bends(now, place)
            by_x = weight_of(link.consumer).T @ (by_a if slope is None else by_a * slope)
        else:
            by_x = _pull_back(now, place, by_a)
        dim = 0 if link.flat else unit_dim(link.consumer, x)
        by_gain = torch.unflatten(x * by_x, dim, (link.group.units, link.group.repeat)).movedim(dim, 0)
        found[place] = Adjoint(by_gain.flatten(1).sum(1, dtype=torch.float64), by_a, slope, bend)
        gains = now.kept.get(link.group.name)
        if gains is not None:
            by_x = with_gains(by_x, link.group, dim, gains)
        by_a = by_x.T if link.flat and place and not now.links[place - 1].flat else by_x
    return found


def _pull_back(now: ActivationCache, place: int, by_a: Tensor) -> Tensor:
    """The derivative by a consumer's input, from that by what comes before the next one."""
    with torch.enable_grad():
        x = now.x[place].detach().requires_grad_()
        (by_x,) = torch.autograd.grad(now.between(place, now.links[place].consumer.run(x)), x, by_a)
    return by_x


def _bends(now: ActivationCache, place: int) -> tuple[Tensor | None, Tensor | None]:
    """First and second derivative of the pointwise functions behind a flat link, at z."""
    stages, z = now.links[place].between, now.z[place].detach()
    if not stages:
        return None, None
    if len(stages) == 1 and in_place(stages[0]) is torch.sigmoid_:
        a = torch.sigmoid(z)
        slope = a * (1 - a)
        return slope, slope * a.mul_(-2).add_(1)
    with torch.enable_grad():
        a = now.between(place, z.requires_grad_())
        (slope,) = torch.autograd.grad(a.sum(), z, create_graph=True)
        bend = torch.autograd.grad(slope.sum(), z, allow_unused=True)[0] if slope.requires_grad else None
    return slope.detach(), bend


def second_derivatives(now: ActivationCache, place: int, around: Mapping[int, Adjoint]) -> Tensor:
    """(units,) float64: d2E/dgain2 at gain 1, summed over the pass's examples.

    Args:
        now: the activations.
        place: which link the units belong to.
        around: the derivatives around the links from `place` on.
    """
    link, z = now.links[place], now.z[place].detach()
    if link.flat and place == len(now.links) - 1 and link.group.repeat == 1:
        diagonal = now.judge.diagonal
        if diagonal is not None:
            return _of_last(now, around[place], diagonal)
    if link.flat:
        numbers = 2 * max(len(each) for each in now.z[place:]) * z.shape[1]
        of_some = partial(_of_flat, now, place, around)
    else:
        numbers = 8 * z.numel()  # a dual number each way through the layers, for every direction
        of_some = partial(_of_any, now, place)
    together = max(1, now.budget_bytes // 4 // (numbers * z.element_size()))
    units = torch.arange(link.group.units, device=z.device)
    return torch.cat([of_some(some) for some in torch.split(units, together)])


def _of_flat(now: ActivationCache, place: int, around: Mapping[int, Adjoint], units: Tensor) -> Tensor:
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
    return found + _of_error(now.judge, direction)


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


def _of_last(now: ActivationCache, at: Adjoint, diagonal: Tensor) -> Tensor:
    """Closed form on the last link: products of matrices and nothing written out per unit."""
    link, x, judge = now.links[-1], now.x[-1], now.judge
    weights = weights_by_unit(link.consumer, link.group)[:, :, 0]
    p = judge.probabilities if isinstance(judge, CrossEntropyDelta) else None
    # of the softmax's Hessian, diag(p) is part of the diagonal here and p p^T is subtracted below
    diagonal = diagonal if p is None else p
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
        p = judge.probabilities
        mean = (p * direction).sum(1, keepdim=True)
        return _dots((direction - mean).square_(), p)
    if judge.diagonal is not None:
        return _dots(direction.square(), judge.diagonal)
    directions = torch.unflatten(direction.transpose(1, 2), 2, judge.outputs.shape[1:])
    return along(partial(_total, judge), judge.outputs, directions)


def _total(judge: LossDelta, outputs: Tensor) -> Tensor:
    """The error summed over the examples."""
    return judge.error(outputs, judge.targets) * len(outputs)


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


def _of_any(now: ActivationCache, place: int, units: Tensor) -> Tensor:
    """By automatic differentiation of what lies behind the consumer."""
    link = now.links[place]

    def total(z: Tensor) -> Tensor:
        return _total(now.judge, run_behind(now, place, z, overwrite=False))

    directions = contributions(link.consumer, link.group, now.x[place], units)
    return along(total, now.z[place].detach(), directions)
