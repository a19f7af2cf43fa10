"""Growing: which removed weights come back, in place of kept ones that are dropped for them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit.masks import Masks, lowest
from prunekit.parts.base import Part, Requirement
from prunekit.parts.context import Scores, StepContext
from prunekit.parts.schedule import Step
from prunekit.statistics import MeanGradient

__all__ = ["Grow", "GrowAtRandom", "GrowByGradient"]


class Grow(Part):
    """A score of removed weights, the highest come back: dynamic sparse training.

    The first step of the pruning removes only. Each later one also exchanges, in every layer by itself: of
    the n weights that it keeps, the floor(n f) that the recipe's score ranks lowest are dropped, and as many
    that are not kept then come back, those with the highest grow score. Ties go to the lower position. A
    weight that comes back starts at zero, without moments in the optimizer. One that is dropped may win its
    place back at once, as in RigL's code; it has never been away then, and keeps its value and its moments.

    At the k-th of K steps f = fraction / 2 (1 + cos(pi (k - 1) / K)). In one training that the steps
    interrupt at equal distances (the retraining `continued`, with `rest` for what follows) this is the
    published fraction / 2 (1 + cos(pi t / T_end)) at the optimizer step t, where T_end is K distances.

    Attributes:
        fraction: of what a layer keeps, exchanged at first (the sources' alpha and zeta).
        start: what the first step removes: weights drawn at `random`, as published, or those of the lowest
            `score`, for a network that is trained already.
    """

    works_on = ("weights",)
    requires = (
        Requirement("regrow", bool, "{part} brings removed weights back: set 'regrow' to true"),
        Requirement(
            "rank",
            lambda rank: rank == "every_step",
            "{part} follows the weights as they are trained: set 'rank' to 'every_step'",
        ),
        Requirement(
            "statistics",
            lambda statistics: statistics == "every_step",
            "{part} follows the weights as they are trained: set 'statistics' to 'every_step'",
        ),
    )

    fraction: float = Field(default=0.3, gt=0, le=1)
    start: Literal["random", "score"] = "random"

    @abstractmethod
    def __call__(self, context: StepContext) -> Scores:
        """The grow score of every weight, with the gradients and values of before the step."""

    def exchanged(self, step: Step, kept: int) -> int:
        """How many of a layer's kept weights are exchanged at a step.

        Args:
            step: of the pruning.
            kept: how many the layer keeps.
        """
        if step.round == 1:
            return 0
        part = self.fraction / 2 * (1 + math.cos(math.pi * (step.round - 1) / step.rounds))
        return math.floor(part * kept)

    @staticmethod
    def grown(kept: Masks, scores: Scores, counts: dict[str, int]) -> Masks:
        """Masks with this many more weights of each layer, those of the highest scores."""
        found = {}
        for name, count in counts.items():
            last = scores[name].neg().masked_fill(kept[name], torch.inf)
            found[name] = kept[name] | lowest(last, count)
        return kept.replace(found)


class GrowAtRandom(Grow):
    """Removed weights drawn at random come back (SET)."""

    name = "random"
    paper = "Mocanu et al. 2018 (SET), arXiv 1707.04780"

    def __call__(self, context: StepContext) -> Scores:
        """Uniform numbers in [0, 1), drawn on the CPU so that every device and process sees the same."""
        return {name: self._drawn(weight, context) for name, weight in context.weights.items()}

    @staticmethod
    def _drawn(weight: Tensor, context: StepContext) -> Tensor:
        return torch.rand(weight.shape, generator=context.generator).to(weight.device)


class GrowByGradient(Grow):
    """|dL/dw|: removed weights that the loss pulls at most come back (RigL).

    The gradient of the mean loss over the calibration sample, another one at each step, of the network as it
    is: with respect to removed weights as well, which are zero in it. The authors take the batch of the step.
    """

    name = "gradient"
    paper = "Evci et al. 2020 (RigL), arXiv 1911.11134"
    needs = (MeanGradient(),)

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values of the mean gradient."""
        gradients = context.statistics[MeanGradient()]
        return {name: gradients[name].abs() for name in context.weights}
