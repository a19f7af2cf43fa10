"""What the parts of a recipe carry through a pruning, and what they do while the network is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunekit.parts.base import BatchLoss, Part
from prunekit.parts.context import StepContext
from prunekit.recipe import Recipe

States = dict[str, dict[str, Tensor]]
"""By the recipe's key of a part, the tensors that it carries."""


def initial_states(recipe: Recipe, model: nn.Module, names: Sequence[str]) -> States:
    """The states of the parts that have any, before a pruning."""
    found = {key: part.initial_state(model, names) for key, part in recipe.parts.items()}
    return {key: state for key, state in found.items() if state}


def copy_states(states: Mapping[str, Mapping[str, Tensor]]) -> States:
    """The same values in tensors of their own."""
    return {key: {name: each.clone() for name, each in state.items()} for key, state in states.items()}


@torch.no_grad()
def before_step(recipe: Recipe, context: StepContext) -> None:
    """Let each part do what it does at the beginning of a step of the pruning."""
    for key, part in recipe.parts.items():
        part.before_step(context.told(key))


def act_in_training(recipe: Recipe) -> bool:
    """Whether a part does anything at the steps of an optimizer."""
    hooks = [type(part).before_optimizer_step for part in recipe.parts.values()]
    return any(hook is not Part.before_optimizer_step for hook in hooks)


@torch.no_grad()
def before_optimizer_step(recipe: Recipe, context: StepContext) -> None:
    """Let each part do what it does at a step of an optimizer."""
    for key, part in recipe.parts.items():
        part.before_optimizer_step(context.told(key))


def training_loss(recipe: Recipe, context: StepContext) -> BatchLoss | None:
    """What the parts make of the loss of a batch, one after the other; None where they leave it."""
    found = [part.training_loss(context.told(key)) for key, part in recipe.parts.items()]
    losses = [each for each in found if each is not None]
    return _InTurn(losses) if losses else None


class _InTurn:
    """Losses of batches, each made of the one before it."""

    def __init__(self, losses: Sequence[BatchLoss]) -> None:
        self._losses = losses

    def __call__(self, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        for each in self._losses:
            loss = each(inputs, outputs, targets, loss)
        return loss
