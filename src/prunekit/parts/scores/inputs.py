"""Scores from the weights and how large the inputs are that they read."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from prunekit.parts.context import StepContext
from prunekit.parts.scores.base import RowScore, Scores
from prunekit.statistics import InputSquares
from prunekit.structure.rows import from_rows, rows_of


class InputScore(RowScore):
    """|w| times a figure of the input that the weight reads."""

    def __call__(self, context: StepContext) -> Scores:
        """The products, in float64."""
        return {name: self._layer(context, name) for name in context.weights}

    def _layer(self, context: StepContext, name: str) -> Tensor:
        layer = context.layer(name)
        squares = context.statistics[self.squares(layer)][name]
        rows = rows_of(context.weights[name], layer).double().abs() * squares.sqrt().unsqueeze(1)
        return from_rows(self.compared(rows), layer)

    @abstractmethod
    def squares(self, layer: nn.Module) -> InputSquares:
        """The statistic whose root is the figure."""

    def compared(self, rows: Tensor) -> Tensor:
        """The scores (groups, rows, columns) as the weights of a layer are compared by them."""
        return rows


class InputDeviation(InputScore):
    """|w| std(x): how much the output moves with the input that the weight reads.

    In a layer without a bias, where a constant input is not made up for, the root mean square takes the place
    of the deviation. Its square is twice the layer's error when the weight alone is removed and nothing but
    the bias makes up for it; with the repair `masked_least_squares` it is the cheap rival of exact OBS.
    """

    name = "input_deviation"
    paper = "Sun et al. 2023 (Wanda), arXiv 2306.11695, about the mean"
    needs = (InputSquares(centred=True), InputSquares(centred=False))

    def squares(self, layer: nn.Module) -> InputSquares:
        """About the mean where there is a bias."""
        return InputSquares(centred=getattr(layer, "bias", None) is not None)


class Wanda(InputScore):
    """|w| ||x||: the size of a weight times the root mean square of its input.

    Attributes:
        within: what a weight is compared with: the weights of its output `row`, as published, so that every
            row loses the same share, by its rank there; or all of its `layer`.
    """

    name = "wanda"
    paper = "Sun et al. 2023, arXiv 2306.11695"
    needs = (InputSquares(centred=False),)
    within: Literal["row", "layer"] = "row"

    def squares(self, layer: nn.Module) -> InputSquares:
        """About zero."""
        return InputSquares(centred=False)

    def compared(self, rows: Tensor) -> Tensor:
        """Ranks within rows, from 0; equal scores by position."""
        if self.within == "layer":
            return rows
        order = rows.argsort(dim=2, stable=True)
        places = torch.arange(rows.shape[2], dtype=rows.dtype, device=rows.device).expand_as(rows)
        return torch.empty_like(rows).scatter_(2, order, places)
