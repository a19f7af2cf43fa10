"""One ranking over all layers."""

import torch
from torch import Tensor

from prunekit.parts.allocation.base import Allocation
from prunekit.parts.context import StepContext
from prunekit.ranking import lowest


class Global(Allocation):
    """All weights of all layers compete in one ranking; a layer keeps what wins, and at least its floor."""

    name = "global"

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Rank once; exactly round(sparsity * total) are marked, ties in the model's order."""
        flat = [self._protected(name, context) for name in context.scores]
        ranked = torch.cat([scores.to(flat[0].device) for scores in flat])
        removed = lowest(ranked, round(context.sparsity * ranked.numel()))
        parts = removed.split([scores.numel() for scores in flat])  # type: ignore[no-untyped-call]
        return {name: int(part.sum()) for name, part in zip(context.scores, parts, strict=True)}

    def _protected(self, name: str, context: StepContext) -> Tensor:
        """The best of a layer, as many as its floor, are out of reach."""
        scores = context.scores[name].flatten()
        scores = scores if scores.dtype == torch.float64 else scores.float()
        settled = name in context.frozen
        within_reach = lowest(scores, context.pruned[name] if settled else self.max_removable(name, context))
        # an infinite score of a layer's own is not to be mixed up with the floor
        return scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill(~within_reach, float("inf"))
