"""One ranking over all layers."""

import torch
from torch import Tensor

from prunekit.parts.allocation.base import Allocation, Situation
from prunekit.ranking import lowest


class Global(Allocation):
    """All weights of all layers compete in one ranking; a layer keeps what wins, and at least its floor."""

    name = "global"

    def amounts(self, situation: Situation) -> dict[str, int]:
        """Rank once; exactly round(sparsity * total) are marked, ties in the model's order."""
        assert situation.sparsity is not None
        flat = [self._protected(name, situation) for name in situation.scores]
        ranked = torch.cat([scores.to(flat[0].device) for scores in flat])
        removed = lowest(ranked, round(situation.sparsity * ranked.numel()))
        parts = removed.split([scores.numel() for scores in flat])  # type: ignore[no-untyped-call]
        return {name: int(part.sum()) for name, part in zip(situation.scores, parts, strict=True)}

    def _protected(self, name: str, situation: Situation) -> Tensor:
        """The best of a layer, as many as its floor, are out of reach."""
        scores = situation.scores[name].flatten()
        scores = scores if scores.dtype == torch.float64 else scores.float()
        settled = name in situation.settled
        within_reach = lowest(scores, situation.lost[name] if settled else self.room(name, situation))
        # an infinite score of a layer's own is not to be mixed up with the floor
        return scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill(~within_reach, float("inf"))
