"""Allocation by measured sensitivity: every layer is pruned as far as it bears."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from prunekit.limits import STEPS
from prunekit.masks import lowest
from prunekit.parts.allocation.base import Allocation
from prunekit.parts.context import StepContext
from prunekit.parts.schedule import Sparsity


class Sensitivity(Allocation):
    """Each layer is pruned alone on a grid and the loss measured; then all are given the same loss increase.

    The increase that all layers may cost is found by bisection so that the total removed is exact. A curve
    that dips is taken at its running maximum, so that more removal never counts as cheaper.

    Attributes:
        grid: the sparsities at which a layer is tried, increasing.
    """

    name = "sensitivity"
    paper = "Han et al. 2015, arXiv 1506.02626, section 5"
    needs_data = True
    grid: tuple[Sparsity, ...] = Field(
        default=(0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98), min_length=1, max_length=STEPS
    )

    @model_validator(mode="after")
    def _increasing(self) -> Sensitivity:
        if self.grid[0] <= 0 or any(later <= earlier for earlier, later in pairwise(self.grid)):
            raise ValueError(f"grid = {list(self.grid)} must be increasing above 0")
        return self

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Exactly round(sparsity * total), shared out at equal loss increase per layer."""
        assert context.loss_with is not None
        base = context.loss_with(context.kept)
        curves = {name: self._curve(name, context, base) for name in context.scores}
        sizes = {name: scores.numel() for name, scores in context.scores.items()}
        total = round(context.sparsity * sum(sizes.values()))
        wanted = self._at_equal_increase(curves, sizes, total, context.pruned)
        return self.share_out(total, wanted, context)

    def _curve(self, name: str, context: StepContext, base: float) -> np.ndarray:
        """Loss increases at sparsity 0, at each point of the grid, and (as infinite) at 1."""
        assert context.loss_with is not None
        increases = [0.0]
        for sparsity in self.grid:
            mask = self._alone(context.scores[name], context.kept[name], sparsity)
            increases.append(context.loss_with(context.kept.replace({name: mask})) - base)
        return np.maximum.accumulate(np.array(increases))

    @staticmethod
    def _alone(scores: Tensor, kept: Tensor, sparsity: float) -> Tensor:
        count = max(round(sparsity * scores.numel()), int((~kept).sum()))
        return ~lowest(scores, count)

    def _at_equal_increase(
        self, curves: dict[str, np.ndarray], sizes: dict[str, int], total: int, lost: Mapping[str, int]
    ) -> dict[str, float]:
        points = np.array([0.0, *self.grid])
        low, high = 0.0, max(float(curve[-1]) for curve in curves.values())

        def wanted(increase: float) -> dict[str, float]:
            return {
                name: max(_reach(points, curve, increase) * sizes[name], lost.get(name, 0))
                for name, curve in curves.items()
            }

        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if sum(wanted(middle).values()) > total else (middle, high)
        return wanted(low)


def _reach(points: np.ndarray, curve: np.ndarray, increase: float) -> float:
    """The largest sparsity whose (interpolated) loss increase stays within `increase`."""
    last = int(np.searchsorted(curve, increase, side="right")) - 1
    if last >= len(points) - 1:
        return float(points[-1])
    step = curve[last + 1] - curve[last]
    return float(points[last] + (points[last + 1] - points[last]) * (increase - curve[last]) / step)
