"""What acts on a model while an optimizer trains it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunekit.masks import Masks
from prunekit.parts.base import Part


class Regularizer(Part):
    """Acts on a model while an optimizer trains it."""

    def check(self, model: nn.Module) -> None:
        """Refuse, before anything is changed, a model that it cannot act on, with an `InputError`."""
        return

    @abstractmethod
    def attach(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None) -> list[Any]:
        """Put hooks on the optimizer or the modules; the handles that are returned remove them."""
