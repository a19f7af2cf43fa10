"""The hooks of a session on the optimizer of a training loop of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunekit.errors import InputError
from prunekit.masks import MaskedOptimizer, Masks


def check_attachable(model: nn.Module, optimizer: Any, masks: Masks) -> None:
    """Refuse an optimizer that does not train the pruned weights, or has masks of them already.

    Raises:
        InputError: naming the first weight that is not its own, or has masks.
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"the optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    for other in MaskedOptimizer.on(optimizer):
        shared = other.shares(model)
        if shared is not None:
            raise InputError(
                f"the optimizer ({type(optimizer).__name__}) carries the masks of another session already, "
                f"of the network that {shared} belongs to: detach() that session first"
            )
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    pairs = zip(masks, (parameter for parameter, _ in masks.parameters(model)), strict=True)
    strange = [(name, parameter) for name, parameter in pairs if id(parameter) not in own]
    trainable = [name for name, parameter in strange if parameter.requires_grad]
    if trainable:
        raise InputError(
            f"the optimizer ({type(optimizer).__name__}) does not train {trainable[0]}, which the recipe "
            "prunes: give it the parameters of this network, or freeze the weight or leave it out by 'ignore'"
        )
    if strange and not any(id(parameter) in own for parameter in model.parameters()):
        raise InputError(
            f"the optimizer ({type(optimizer).__name__}) trains no parameter of this network, such as "
            f"{strange[0][0]}"
        )


class Attachment:
    """Masks that act after each step of an optimizer, and somebody who is told of it.

    Args:
        model: the network.
        optimizer: of its training.
        masks: that act from now on.
        before: called before each step; None for nothing.
        after: called after each step, once the masks have acted.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Masks,
        *,
        before: Callable[[], None] | None,
        after: Callable[[], None],
    ) -> None:
        self._optimizer = optimizer
        self._masked = MaskedOptimizer(model, optimizer, masks)

        def stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            after()

        self._handles = [optimizer.register_step_post_hook(stepped)]
        if before is not None:
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: before()))

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
        for handle in self._handles:
            handle.remove()
