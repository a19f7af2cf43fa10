"""Scores from the gradient of the loss by the weights."""

from prunekit.parts.context import StepContext
from prunekit.parts.scores.base import Score, Scores
from prunekit.statistics import MeanGradient


class Gradient(Score):
    """|dL/dw|: weights that the loss does not pull at go first."""

    name = "gradient"
    paper = "Blalock et al. 2020, arXiv 2003.03033, as a baseline"
    needs = (MeanGradient(),)

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values of the mean gradient."""
        return {name: gradient.abs() for name, gradient in context.statistics[MeanGradient()].items()}


class WeightGradient(Score):
    """|w dL/dw|: the first-order change of the loss when the weight is set to zero (SNIP).

    SNIP takes it before training; on a trained network it is the first-order Taylor criterion.
    """

    name = "weight_gradient"
    paper = "Lee, Ajanthan, Torr 2019 (SNIP), arXiv 1810.02340"
    needs = (MeanGradient(),)

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values of weight times mean gradient."""
        gradients = context.statistics[MeanGradient()]
        return {name: (weight * gradients[name]).abs() for name, weight in context.weights.items()}
