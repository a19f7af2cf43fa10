"""Keeping removed weights at zero while an optimizer runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.masks import Masks
from prunekit.targets import unwrap


class MaskedOptimizer:
    """Multiplies the weights by their masks after every step of an optimizer.

    Momentum and weight decay can move a removed weight whatever its gradient is, so the mask acts after the
    step, and the moments of removed weights are cleared when the masks change. The model itself is not
    touched: its state_dict keys, `copy.deepcopy`, `torch.compile` and DDP work as before.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, masks: Masks) -> None:
        self._model = model
        self._optimizer = optimizer
        self.update(masks)
        self._handle: RemovableHandle = optimizer.register_step_post_hook(self._after_step)

    def update(self, masks: Masks) -> None:
        """Take new masks: zero what they remove, and clear its moments."""
        self.resume(masks)
        self._clear_moments()

    def resume(self, masks: Masks) -> None:
        """Take the masks of a checkpoint: the moments that belong to them are the optimizer's to load."""
        pairs = masks.parameters(self._model)
        self._weights: list[Tensor] = [parameter for parameter, _ in pairs]
        self._booleans = [mask for _, mask in pairs]
        self._factors = self._as_factors()
        masks.apply(self._model)

    def detach(self) -> None:
        """Stop acting on the optimizer."""
        self._handle.remove()

    @staticmethod
    def on(optimizer: Optimizer) -> list[MaskedOptimizer]:
        """Those that act on an optimizer now; its hooks are where they are written down."""
        hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
        owners = (getattr(hook, "__self__", None) for hook in hooks)
        return [owner for owner in owners if isinstance(owner, MaskedOptimizer)]

    def shares(self, model: nn.Module) -> str | None:
        """The first parameter of a network that is of the one whose weights are masked here; None if none."""
        own = {id(parameter) for parameter in self._model.parameters()}
        named = unwrap(model).named_parameters()
        return next((name for name, parameter in named if id(parameter) in own), None)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # once per step of the training, so it does no more than it must: one fused multiplication
        weights = [weight.detach() for weight in self._weights]
        try:
            torch._foreach_mul_(weights, self._factors)
        except RuntimeError:  # the model was moved to another device since
            self._factors = self._as_factors()
            torch._foreach_mul_(weights, self._factors)

    def _as_factors(self) -> list[Tensor]:
        """The masks as 0 and 1 of the weights' own dtype and device, which multiply fastest."""
        return [
            mask.to(device=weight.device, dtype=weight.dtype)
            for mask, weight in zip(self._booleans, self._weights, strict=True)
        ]

    @torch.no_grad()
    def _clear_moments(self) -> None:
        for weight, mask in zip(self._weights, self._booleans, strict=True):
            for value in self._optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(~mask.to(value.device), 0)
