"""The context of an allocation, made by hand."""

from collections.abc import Callable

import torch
from torch import Tensor

from prunekit.masks import Masks
from prunekit.parts.context import StepContext
from prunekit.parts.schedule import Step


def context_of(
    scores: dict[str, Tensor],
    sparsity: float | None,
    *,
    previous: float = 0.0,
    round_: int = 1,
    rounds: int = 1,
    masks: Masks | None = None,
    loss_with: Callable[[Masks], float] | None = None,
) -> StepContext:
    """The weights are the scores; what the masks remove scores minus infinity."""
    masks = masks or Masks({name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()})
    return StepContext(
        step=Step(sparsity=sparsity, previous=previous, round=round_, rounds=rounds),
        scores={name: s.masked_fill(~masks[name], float("-inf")) for name, s in scores.items()},
        weights=scores,
        kept=masks,
        loss_with=loss_with,
        pruned={name: int((~mask).sum()) for name, mask in masks.items()},
    )
