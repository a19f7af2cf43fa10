"""A situation for an allocation, made by hand."""

from collections.abc import Callable

import torch
from torch import Tensor

from prunekit.masks import Masks
from prunekit.parts.allocation import Situation


def situation(
    scores: dict[str, Tensor],
    sparsity: float | None,
    *,
    previous: float = 0.0,
    round_: int = 1,
    rounds: int = 1,
    masks: Masks | None = None,
    loss_with: Callable[[Masks], float] | None = None,
) -> Situation:
    """The weights are the scores; what the masks remove scores minus infinity."""
    masks = masks or Masks({name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()})
    return Situation(
        sparsity=sparsity,
        previous=previous,
        round=round_,
        rounds=rounds,
        scores={name: s.masked_fill(~masks[name], float("-inf")) for name, s in scores.items()},
        weights=scores,
        masks=masks,
        loss_with=loss_with,
        lost={name: int((~mask).sum()) for name, mask in masks.items()},
    )
