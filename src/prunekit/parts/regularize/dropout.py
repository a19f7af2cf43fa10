"""Dropout, at a rate that follows the density of pruned layers."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.regularize.base import Regularizer
from prunekit.targets import Known, owner_of, types_of, unwrap


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

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Masks | None = None,
        example_inputs: Inputs | None = None,
    ) -> list[Any]:
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

    def check(self, model: nn.Module, example_inputs: Inputs | None = None) -> None:
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
