"""What acts during training: penalties and dropout, on any model and with any optimizer."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.base import Part
from prunekit.settings import LARGE
from prunekit.targets import Known, owner_of, types_of, unwrap


class Regularizer(Part):
    """Acts on a model while an optimizer trains it."""

    def check(self, model: nn.Module) -> None:
        """Refuse, before anything is changed, a model that it cannot act on, with an `InputError`."""
        return

    @abstractmethod
    def attach(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None) -> list[Any]:
        """Put hooks on the optimizer or the modules; the handles that are returned remove them."""


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

    def check(self, model: nn.Module) -> None:
        """There must be a batch norm with a scale where scales are penalised."""
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

    def attach(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None) -> list[Any]:
        """A hook before the optimizer's step."""
        self.check(model)
        weights = self._penalised(model)

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
    paper = "of norm scales: Liu et al. 2017 (network slimming), arXiv 1708.06519"

    def _gradient(self, weights: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_sign(weights))


class L2(_Penalty):
    """strength / 2 * sum w^2, which keeps weights small."""

    name = "l2"

    def _gradient(self, weights: list[Tensor]) -> list[Tensor]:
        return weights


class Dropout(Regularizer):
    """Hidden activations are zeroed with probability p in training.

    Attributes:
        p: the probability on the unpruned network.
        on: the modules whose output is dropped: type names, full names, globs or `re:` patterns.
        scale_with_density: while masks are on, p shrinks by sqrt(kept / original) of the connections that
            lead into what is dropped, because a sparse layer overfits less (Han et al. 2015, equation 2):
            those of the pruned layer that ran last before it.
    """

    name = "dropout"
    paper = "Srivastava et al. 2014; Han et al. 2015, arXiv 1506.02626"
    p: float = Field(default=0.5, gt=0, lt=1)
    on: tuple[str, ...] = ("ReLU", "Sigmoid", "Tanh", "GELU", "LeakyReLU", "SiLU", "ELU")
    scale_with_density: bool = True

    def attach(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None) -> list[Any]:
        """Hooks on the outputs of the chosen modules; they act in train mode only."""
        self.check(model)
        rate = self.p
        handles: list[Any] = []

        def entering(density: float) -> Any:
            def hook(*_: Any) -> None:
                nonlocal rate
                rate = self.p * math.sqrt(density)

            return hook

        def drop(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return F.dropout(output, rate, training=module.training)

        if masks is not None and self.scale_with_density:
            inner = unwrap(model)
            handles = [
                owner.register_forward_hook(entering(density))
                for owner, density in _densities(inner, masks).items()
            ]
            handles.append(inner.register_forward_pre_hook(entering(1.0)))
        return handles + [module.register_forward_hook(drop) for module in self._modules(model)]

    def check(self, model: nn.Module) -> None:
        """At least one module must be chosen."""
        if not self._modules(model):
            raise InputError(
                f"dropout: no module of the model is one of {', '.join(self.on)}: "
                "name the modules whose output is to be dropped in `on`"
            )

    def _modules(self, model: nn.Module) -> list[nn.Module]:
        named = unwrap(model).named_modules()
        return [module for name, module in named if Known({name} - {""}, types_of(module)).fits(self.on)]


def _densities(model: nn.Module, masks: Masks) -> dict[nn.Module, float]:
    """What share of its masked weights each layer has left."""
    counts: dict[nn.Module, list[int]] = {}
    for name, mask in masks.items():
        left = counts.setdefault(owner_of(model, name), [0, 0])
        left[0] += int(mask.sum())
        left[1] += mask.numel()
    return {owner: kept / total for owner, (kept, total) in counts.items()}
