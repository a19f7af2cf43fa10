"""Scores of weights that multiply inputs, row by row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prunekit.parts.scores.base import Score
from prunekit.statistics import row_layers
from prunekit.structure import Chain


class RowScore(Score):
    """What looks at what a layer's rows of weights are multiplied with."""

    def check(self, model: nn.Module, chain: Chain | None, names: Sequence[str]) -> None:
        """Only linear and convolution layers have rows.

        Raises:
            ModelError: naming another one.
        """
        if chain is None:
            row_layers(model, names)
