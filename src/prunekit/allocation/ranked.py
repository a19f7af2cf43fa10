"""One ranking over all layers."""

from typing import ClassVar

import torch

from prunekit.allocation.base import Allocation, Situation
from prunekit.ranking import lowest


class Global(Allocation):
    """All weights of all layers compete in one ranking; each layer keeps what wins, and at least its floor."""

    name: ClassVar[str] = "global"

    def amounts(self, situation: Situation) -> dict[str, int]:
        """Rank once; exactly round(sparsity * total) are marked, ties in the model's order."""
        assert situation.sparsity is not None
        flat = [self._protected(scores.flatten().float()) for scores in situation.scores.values()]
        ranked = torch.cat([scores.to(flat[0].device) for scores in flat])
        removed = lowest(ranked, round(situation.sparsity * ranked.numel()))
        parts = removed.split([scores.numel() for scores in flat])
        return {name: int(part.sum()) for name, part in zip(situation.scores, parts, strict=True)}

    def _protected(self, scores: torch.Tensor) -> torch.Tensor:
        """The best of a layer, as many as its floor, are out of reach."""
        within_reach = lowest(scores, self.capacity(scores.numel()))
        return scores.masked_fill(~within_reach, float("inf"))
