"""Dropout on models that were written without it."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.regularize.base import Regularizer
from prunekit.targets import matches, unwrap


class Dropout(Regularizer):
    """Hidden activations are zeroed with probability p in training.

    Attributes:
        p: the probability on the unpruned network.
        on: the modules whose output is dropped: type names, full names, globs or `re:` patterns.
        scale_with_density: while masks are on, p shrinks by sqrt(kept / original), because a sparse layer
            overfits less (Han et al. 2015, section 3.2). The density is that of all pruned layers.
    """

    name = "dropout"
    paper = "Srivastava et al. 2014; Han et al. 2015, arXiv 1506.02626"
    p: float = Field(default=0.5, gt=0, lt=1)
    on: tuple[str, ...] = ("ReLU", "Sigmoid", "Tanh", "GELU", "LeakyReLU", "SiLU", "ELU")
    scale_with_density: bool = True

    def attach(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None) -> list[Any]:
        """Hooks on the outputs of the chosen modules; they act in train mode only."""
        self.check(model)
        p = self.p
        if masks is not None and self.scale_with_density:
            p *= math.sqrt(masks.kept / masks.total)

        def drop(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return F.dropout(output, p, training=module.training)

        return [module.register_forward_hook(drop) for module in self._modules(model)]

    def check(self, model: nn.Module) -> None:
        """At least one module must be chosen."""
        if not self._modules(model):
            raise InputError(
                f"dropout: no module of the model is one of {', '.join(self.on)}: "
                "name the modules whose output is to be dropped in `on`"
            )

    def _modules(self, model: nn.Module) -> list[nn.Module]:
        return [module for name, module in unwrap(model).named_modules() if self._chosen(name, module)]

    def _chosen(self, name: str, module: nn.Module) -> bool:
        types = {kind.__name__ for kind in type(module).__mro__}
        return any(pattern in types or (name and matches(pattern, name)) for pattern in self.on)
