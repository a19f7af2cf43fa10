"""An allocation that follows a layer's own average."""

from __future__ import annotations

from pydantic import Field

from prunekit.limits import LARGE
from prunekit.parts.allocation.base import DECIDED, Allocation
from prunekit.parts.context import StepContext


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
