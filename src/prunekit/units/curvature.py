"""The exact second derivative of the error by a unit's gain.

A gain moves the consumer's pre-activation along a line, so that the second derivative is that of the error
along this line. Behind a flat link it is a sum over the layers: for each activation the error's derivative by
its output times its own second derivative times the square of the line's direction there, and at the end the
error's own second derivative along the direction. Only the direction has to be carried to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.losses import Loss, squared_error
from prunekit.units.adjoints import Adjoint
from prunekit.units.layers import contributions, weight_of, weights_by_unit
from prunekit.units.loss_delta import CrossEntropyDelta, LossDelta, absolute_error
from prunekit.units.suffix import run_behind

if TYPE_CHECKING:
    from prunekit.units.chain_runner import ActivationCache


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


def along(function: Callable[[Tensor], Tensor], at: Tensor, directions: Tensor) -> Tensor:
    """(C,) float64: the second derivative of a function along each of the directions (C, ...).

    Forward over reverse: what depends on the point alone is computed once for all directions.
    """
    gradient = torch.func.grad(function)

    def of_one(direction: Tensor) -> Tensor:
        change = torch.func.jvp(gradient, (at,), (direction,))[1]
        return (change * direction).double().sum()

    # torch.func differentiates under no_grad as well, and then follows no parameters
    return torch.func.vmap(of_one)(directions)


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
