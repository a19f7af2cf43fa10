"""The candidate phase: a pool of units, each trained to go along with the errors that are left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, Rprop

from prunekit.growing.activations import UNIT_ACTIVATIONS
from prunekit.growing.correlation import correlation
from prunekit.growing.settings import CascadeSettings


@dataclass(frozen=True)
class Candidate:
    """The best unit of a pool.

    Attributes:
        weight: (features,).
        bias: a scalar.
        correlation: its S.
    """

    weight: Tensor
    bias: Tensor
    correlation: float


def best_candidate(
    features: Tensor, errors: Tensor, settings: CascadeSettings, generator: torch.Generator
) -> Candidate:
    """Train a pool and give the unit with the largest S, with the values at which it had it.

    All candidates are trained at once, as the columns of one matrix product, and none acts on another except
    that the whole pool ends when its best one has stopped to improve.

    Args:
        features: (N, features), what the unit will read.
        errors: (N, outputs), the outputs minus the targets.
        settings: of the candidate phase.
        generator: of the initial values, on the CPU, so that all devices start alike.
    """
    weight, bias = _draw(settings.candidates, features, generator)
    optimizer = _optimizer([weight, bias], settings)
    activation = UNIT_ACTIVATIONS[settings.activation]
    best = torch.full_like(bias, -1.0)
    best_weight, best_bias = weight.detach().clone(), bias.detach().clone()
    scale = float(errors.norm()) or 1.0  # Adam has an absolute limit, and S the scale of the targets
    mark, waited = 0.0, 0
    for _ in range(settings.candidate_epochs):
        found = correlation(activation(features @ weight.T + bias), errors)
        with torch.no_grad():
            better = found > best  # false for NaN
            best = torch.where(better, found, best)
            best_weight = torch.where(better[:, None], weight, best_weight)
            best_bias = torch.where(better, bias, best_bias)
            top = float(best.max())
        if top > mark * (1 + settings.candidate_improvement):
            mark, waited = top, 0
        else:
            waited += 1
            if waited >= settings.candidate_patience:
                break
        optimizer.zero_grad()
        (-found.sum() / scale).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    winner = int(best.argmax())
    return Candidate(best_weight[winner], best_bias[winner], float(best[winner]))


def _draw(candidates: int, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights (candidates, features) and biases (candidates,), to be trained.

    Uniform with the width at which standardised inputs give a weighted sum of variance 1: for two inputs it
    is the +-1 of the authors' program, and with hundreds a unit does not begin saturated.
    """
    fan_in = features.shape[1] + 1
    values = torch.rand(candidates, fan_in, generator=generator, dtype=torch.float64)
    values = ((2 * values - 1) * math.sqrt(3 / fan_in)).to(features)
    return values[:, :-1].clone().requires_grad_(), values[:, -1].clone().requires_grad_()


def _optimizer(parameters: list[Tensor], settings: CascadeSettings) -> Optimizer:
    kind = Rprop if settings.candidate_optimizer == "rprop" else Adam
    return kind(parameters, lr=settings.candidate_lr)
