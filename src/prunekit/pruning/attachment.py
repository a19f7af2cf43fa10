"""The hooks of a session on the optimizer of a training loop of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunekit.masking import MaskedOptimizer
from prunekit.masks import Masks


class Attachment:
    """Masks that act after each step of an optimizer, and somebody who is told of it.

    Args:
        model: the network.
        optimizer: of its training.
        masks: that act from now on.
        after: called after each step, once the masks have acted.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, masks: Masks, after: Callable[[], None]
    ) -> None:
        self._optimizer = optimizer
        self._masked = MaskedOptimizer(model, optimizer, masks)

        def stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            after()

        self._counter = optimizer.register_step_post_hook(stepped)

    def update(self, masks: Masks) -> None:
        """Other masks from now on."""
        self._masked.update(masks)

    def resume(self, masks: Masks) -> None:
        """The masks of a session that was interrupted."""
        self._masked.resume(masks)

    def forget(self) -> None:
        """Moments of other values say nothing about those that the network has now."""
        self._optimizer.state.clear()

    def detach(self) -> None:
        """Take the hooks off."""
        self._masked.detach()
        self._counter.remove()
