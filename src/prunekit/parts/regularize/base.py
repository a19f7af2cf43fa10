"""What acts on a model while an optimizer trains it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.masks import Masks
from prunekit.parts.base import Part


class Regularizer(Part):
    """Acts on a model while an optimizer trains it.

    Attributes:
        interruptible: whether it may act in a training that the steps of a pruning interrupt.
    """

    interruptible: ClassVar[bool] = True

    def check(self, model: nn.Module) -> None:
        """Refuse, before anything is changed, a model that it cannot act on, with an `InputError`."""
        return

    def attach_to(
        self, model: nn.Module, optimizer: Optimizer, masks: Masks | None, example_inputs: Inputs
    ) -> list[Any]:
        """The same as `attach`, where there are examples of what the network is run on."""
        return self.attach(model, optimizer, masks)

    @abstractmethod
    def attach(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None) -> list[Any]:
        """Put hooks on the optimizer or the modules; the handles that are returned remove them."""
