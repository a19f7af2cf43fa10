"""Scores from how the two ends of a connection go together."""

from __future__ import annotations

from prunekit.parts.context import StepContext
from prunekit.parts.scores.base import RowScore, Scores
from prunekit.statistics import ConnectionCorrelation


class Correlation(RowScore):
    """|r|: the correlation of the activations at the two ends of the connection; the weakest go first.

    A convolution's weight has the mean of |r| over the positions that it serves. The upper end is the neuron
    behind its batch norm and activation function, where they follow the layer directly; where the network
    cannot be traced, it is the layer's own output. By itself this keeps the strongest connections; the
    published method draws at random in two halves of them, which is the selection `correlated_halves`.
    """

    name = "correlation"
    paper = "Sun, Wang, Tang 2016, CVPR, arXiv 1512.01891"
    needs = (ConnectionCorrelation(),)

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values, in float64."""
        found = context.statistics[ConnectionCorrelation()]
        return {name: found[name].abs() for name in context.weights}
