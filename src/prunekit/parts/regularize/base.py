"""What acts on a model while an optimizer trains it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.base import Part


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether an optimizer works out the gradients itself, inside its step."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def check_gradients_are_there(who: str, optimizer: Optimizer) -> None:
    """Refuse an optimizer whose gradients are not there before its step.

    Raises:
        InputError: naming who looks at them or adds to them then.
    """
    if needs_closure(optimizer):
        raise InputError(
            f"{who}: acts on the gradients just before a step, but {type(optimizer).__name__} works them out "
            "inside it, by a closure: train with an optimizer that needs none"
        )


class Regularizer(Part):
    """Acts on a model while an optimizer trains it.

    Attributes:
        interruptible: whether it may act in a training that the steps of a pruning interrupt.
        by_example: whether the network is run on an example to find what it acts on.
    """

    interruptible: ClassVar[bool] = True
    by_example: ClassVar[bool] = False

    def check(self, model: nn.Module) -> None:
        """Refuse, before anything is changed, a model that it cannot act on, with an `InputError`."""
        return

    @abstractmethod
    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Masks | None = None,
        example_inputs: Inputs | None = None,
    ) -> list[Any]:
        """Put hooks on the optimizer or the modules; the handles that are returned remove them.

        Args:
            model: the network.
            optimizer: of the training.
            masks: what is pruned already.
            example_inputs: what the network can be run on, for those that are `by_example`; by default they
                are made up where that is possible.
        """
