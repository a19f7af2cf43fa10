"""Scores that look at the weights alone."""

from typing import Literal

import torch

from prunekit.parts.context import StepContext
from prunekit.parts.scores.base import Score, Scores


class Random(Score):
    """A random number per weight, or per unit: the control of every comparison."""

    name = "random"

    def __call__(self, context: StepContext) -> Scores:
        """Uniform numbers in [0, 1), drawn on the CPU so that every device and process sees the same."""
        return {
            name: torch.rand(each.shape, generator=context.generator).to(each.device)
            for name, each in context.elements.items()
        }


class Magnitude(Score):
    """|w|: the smallest weights go first.

    With `relative_to: layer_norm` each layer is divided by its root mean square, which makes layers of
    different scale comparable in a global ranking.
    """

    name = "magnitude"
    paper = "Han et al. 2015, arXiv 1506.02626"
    relative_to: Literal["nothing", "layer_norm"] = "nothing"

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values, in the weights' dtype."""
        scores = {name: weight.abs() for name, weight in context.weights.items()}
        if self.relative_to == "layer_norm":
            tiny = torch.finfo(torch.float32).tiny
            return {name: s / s.square().mean().sqrt().clamp(min=tiny) for name, s in scores.items()}
        return scores
