"""OWL: layers with many outliers keep more."""

from __future__ import annotations

from pydantic import Field

from prunekit.limits import LARGE
from prunekit.parts.allocation.base import Allocation
from prunekit.parts.context import StepContext


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
