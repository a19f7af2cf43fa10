"""Allocations that follow from the scores: one ranking, a bound below the mean, outliers."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from prunekit.limits import LARGE
from prunekit.masks import lowest
from prunekit.parts.allocation.base import DECIDED, Allocation
from prunekit.parts.context import StepContext


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


class BelowMean(Allocation):
    """Whatever scores below tau * mean - deviations * standard deviation of its layer's scores.

    Both are taken over what is left of the layer, so that every further round removes some more; the schedule
    is `rounds`. N2PS takes what is below the mean (tau 1); APoZ what has more zeros than mean + 1 standard
    deviation, which is a share of non-zeros below mean - 1 standard deviation.

    Attributes:
        tau: the multiple of the mean.
        deviations: how many standard deviations (of the layer's scores, divisor n) below that.
    """

    name = "below_mean"
    paper = "Augasta, Kathirvalavakumar 2011, doi 10.1007/s11063-011-9196-7; Hu et al. 2016, arXiv 1607.03250"
    local = True
    requires = (DECIDED,)
    tau: float = Field(default=1.0, ge=0, le=LARGE)
    deviations: float = Field(default=0.0, ge=0, le=LARGE)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """What is gone and what is below the bound, at most down to the floor."""
        amounts = {}
        for name, scores in context.scores.items():
            lost, kept = context.pruned.get(name, 0), context.kept[name]
            if name in context.frozen or not bool(kept.any()):
                amounts[name] = lost
                continue
            left = scores[kept].double()
            # of equal scores none is below the mean, however the sum is rounded
            mean = left.mean().clamp(left.min(), left.max())
            bound = self.tau * mean - self.deviations * left.std(correction=0)
            below = int((left < bound).sum())
            amounts[name] = max(
                lost, min(kept.numel() - left.numel() + below, self.max_removable(name, context))
            )
        return amounts


class OWL(Allocation):
    """A layer's sparsity falls with its share of outliers, scores far above the layer's mean.

    Made for the scores |w| ||x|| (`wanda` with `within: layer`). With D the share of a layer's scores above
    `outlier` times their mean, its sparsity is that of the network plus `spread` times what D, scaled to
    [0, 2] over the layers, lies below its mean over the weights.

    Attributes:
        outlier: M, how many times the mean a score must reach to count as an outlier.
        spread: λ, how far layers may differ from the sparsity of the network.
    """

    name = "owl"
    paper = "Yin et al. 2024, arXiv 2310.05175"
    outlier: float = Field(default=5.0, gt=1, le=LARGE)
    spread: float = Field(default=0.08, ge=0, lt=1)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Sparsities shifted so that the total is exactly round(sparsity * total)."""
        sizes = {name: scores.numel() for name, scores in context.scores.items()}
        shares = {}
        for name, scores in context.scores.items():
            finite = scores.double().clamp(min=0)  # what is removed already is minus infinity
            shares[name] = float((finite > self.outlier * finite.mean()).double().mean())
        low, high = min(shares.values()), max(shares.values())
        width = high - low if high > low else 1.0
        scaled = {name: 2 * self.spread * (share - low) / width for name, share in shares.items()}
        total = sum(sizes.values())
        mean = sum(scaled[name] * size for name, size in sizes.items()) / total
        wanted = {name: (context.sparsity - scaled[name] + mean) * size for name, size in sizes.items()}
        return self.share_out(round(context.sparsity * total), wanted, context)
