"""What acts on a model while an optimizer trains it."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.masked_optimizer import MaskedOptimizer, skips, unscale
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


class StepHooks:
    """What is called before and after each step of an optimizer, as a handle; a copy acts on the copy of it.

    An optimizer is copied without its hooks. Network, optimizer and handles must be copied together, as
    `copy.deepcopy((model, optimizer, handles))`. Masks act behind them, and so does the pruning of a session
    that is attached to the optimizer, whichever came first. Also with a `GradScaler` the gradients before a
    step are those of the loss, and a step that it skips is none.

    Args:
        optimizer: of the training.
        before: (optimizer, args, kwargs) -> None, called before each step; a method or a partial of one, so
            that a copy has its own.
        after: the same after each step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        before: Callable[..., None] | None = None,
        after: Callable[..., None] | None = None,
    ) -> None:
        self._given = optimizer, before, after
        self._handles: list[Any] = []
        if before is not None:
            self._handles.append(optimizer.register_step_pre_hook(self._before))
        if after is not None:
            self._handles.append(optimizer.register_step_post_hook(self._after))
            MaskedOptimizer.put_last(optimizer)

    def _before(self, optimizer: Optimizer, *args: Any) -> None:
        _, before, _ = self._given
        if before is not None and not skips(optimizer):
            unscale(optimizer)
            before(optimizer, *args)

    def _after(self, optimizer: Optimizer, *args: Any) -> None:
        *_, after = self._given
        if after is not None and not skips(optimizer):
            after(optimizer, *args)

    def remove(self) -> None:
        """Call them no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __deepcopy__(self, memo: dict[int, Any]) -> StepHooks:
        """The same on the copy of the optimizer."""
        optimizer, before, after = copy.deepcopy(self._given, memo)
        twin = StepHooks(optimizer, before=before, after=after)
        if not self._handles:
            twin.remove()
        return twin


class Regularizer(Part):
    """Acts on a model while an optimizer trains it.

    Attributes:
        interruptible: whether it may act in a training that the steps of a pruning interrupt.
        by_example: whether the network is run on an example to find what it acts on.
    """

    home: ClassVar[str] = "prunekit.parts.regularize"
    interruptible: ClassVar[bool] = True
    by_example: ClassVar[bool] = False

    def check(self, model: nn.Module, example_inputs: Inputs | None = None) -> None:
        """Refuse, before anything is changed, a model that it cannot act on, with an `InputError`.

        Args:
            model: the network.
            example_inputs: what it can be run on, where it is known, for those that are `by_example`.
        """
        return

    def of_length(self, steps: int) -> Regularizer:
        """The same for a training of so many steps; an `InputError` where that is too short."""
        return self

    @abstractmethod
    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Masks | None = None,
        example_inputs: Inputs | None = None,
    ) -> list[Any]:
        """Put hooks on the optimizer or the modules; the handles that are returned remove them.

        A copy of model and optimizer is acted on as they are if the handles are copied with them, in one call
        of `copy.deepcopy`.

        Args:
            model: the network.
            optimizer: of the training.
            masks: what is pruned already.
            example_inputs: what the network can be run on, for those that are `by_example`; by default they
                are made up where that is possible.
        """
