"""Penalties on the size of the weights."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.limits import LARGE
from prunekit.masks import Masks
from prunekit.parts.regularize.base import Regularizer


class _Penalty(Regularizer):
    """Adds the penalty's gradient just before each step, which spares a second graph over all weights.

    It acts on parameters of two or more dimensions: biases and normalisation are not penalised. The loss
    that is reported is without the penalty.
    """

    strength: float = Field(gt=0, le=LARGE)

    def attach(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None) -> list[Any]:
        """A hook before the optimizer's step."""
        weights = [parameter for parameter in model.parameters() if parameter.dim() >= 2]

        @torch.no_grad()
        def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            active = [weight for weight in weights if weight.grad is not None]
            gradients = [weight.grad for weight in active if weight.grad is not None]
            if gradients:  # all weights may be frozen
                torch._foreach_add_(gradients, self._gradient(list(active)), alpha=self.strength)

        return [optimizer.register_step_pre_hook(before_step)]

    def _gradient(self, weights: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError


class L1(_Penalty):
    """strength * sum |w|, which drives weights to zero."""

    name = "l1"

    def _gradient(self, weights: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_sign(weights))


class L2(_Penalty):
    """strength / 2 * sum w^2, which keeps weights small."""

    name = "l2"

    def _gradient(self, weights: list[Tensor]) -> list[Tensor]:
        return weights
