"""Penalties on single weights, by their gradients."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.regularize.base import Regularizer, StepHooks, check_gradients_are_there
from prunekit.parts.regularize.gates import check_no_gates
from prunekit.settings import LARGE


class _Penalty(Regularizer):
    """Adds the penalty's gradient just before each step, which spares a second graph over all weights.

    The loss that is reported is without the penalty.

    Attributes:
        strength: its factor.
        of: what is penalised: `weights` are the parameters of two or more dimensions, without biases and
            normalisation; `norm_scales` are the scales γ of batch norms, as for network slimming.
    """

    strength: float = Field(gt=0, le=LARGE)
    of: Literal["weights", "norm_scales"] = "weights"

    def check(self, model: nn.Module, example_inputs: Inputs | None = None) -> None:
        """There must be a batch norm with a scale where scales are penalised, and no gates yet."""
        check_no_gates(self.name, model)
        if self.of == "norm_scales" and not self._penalised(model):
            raise InputError(
                f"{self.name}: the model has no batch norm with a scale, which 'of: norm_scales' penalises: "
                "take 'of: weights'"
            )

    def _penalised(self, model: nn.Module) -> list[Tensor]:
        if self.of == "weights":
            return [parameter for parameter in model.parameters() if parameter.dim() >= 2]
        norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
        return [norm.weight for norm in norms if norm.weight is not None]

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Masks | None = None,
        example_inputs: Inputs | None = None,
    ) -> list[Any]:
        """A hook before the optimizer's step."""
        self.check(model)
        check_gradients_are_there(self.name, optimizer)
        return [StepHooks(optimizer, before=partial(self._before_step, self._penalised(model)))]

    @torch.no_grad()
    def _before_step(self, weights: list[Tensor], *_: Any) -> None:
        active = [weight for weight in weights if weight.grad is not None]
        gradients = [weight.grad for weight in active if weight.grad is not None]
        if gradients:  # all weights may be frozen
            torch._foreach_add_(gradients, self._gradient(list(active)), alpha=self.strength)

    def _gradient(self, weights: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError


class L1(_Penalty):
    """strength * sum |w|, which drives weights to zero."""

    name = "l1"
    paper = "of norm scales: Liu et al. 2017 (network slimming), arXiv 1708.06519"

    def _gradient(self, weights: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_sign(weights))


class L2(_Penalty):
    """strength / 2 * sum w^2, which keeps weights small."""

    name = "l2"

    def _gradient(self, weights: list[Tensor]) -> list[Tensor]:
        return weights
