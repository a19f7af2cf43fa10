"""Scores: one number per weight or unit, the lowest go first; those of single weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.graph.rows import from_rows, row_layers, rows_of
from prunekit.masks import stable_order
from prunekit.obs.rates import Rates
from prunekit.parts.base import LEVELS, Level, Requirement
from prunekit.parts.context import Score, Scores, StepContext
from prunekit.parts.retrain import TrainingSettings
from prunekit.settings import LARGE
from prunekit.statistics import ConnectionCorrelation, InputSquares, MeanGradient
from prunekit.training import Training


class RowScore(Score):
    """What looks at what a layer's rows of weights are multiplied with."""

    def check(self, context: StepContext) -> None:
        """Only linear and convolution layers have rows.

        Raises:
            ModelError: naming another one.
        """
        row_layers(context.model, context.weights)


class Random(Score):
    """A random number per weight, or per unit: the control of every comparison."""

    name = "random"
    comparable = tuple(LEVELS)

    @property
    def of_weights(self) -> bool:
        """Of whatever is counted."""
        return False

    def __call__(self, context: StepContext) -> Scores:
        """Uniform numbers in [0, 1), drawn on the CPU so that every device and process sees the same."""
        return {
            name: torch.rand(each.shape, generator=context.generator).to(each.device)
            for name, each in context.counted.items()
        }


class Magnitude(Score):
    """|w|: the smallest weights go first.

    With `relative_to: layer_norm` each layer is divided by its root mean square, which makes layers of
    different scale comparable in a global ranking.
    """

    name = "magnitude"
    paper = "Han et al. 2015, arXiv 1506.02626"
    by_layer = True
    comparable = ("weights",)
    compared_if_named = ("units",)  # "minimum weight" of Molchanov et al. 2017, arXiv 1611.06440
    relative_to: Literal["nothing", "layer_norm"] = "nothing"

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values, in the weights' dtype."""
        scores = {name: weight.abs() for name, weight in context.weights.items()}
        if self.relative_to == "layer_norm":
            tiny = torch.finfo(torch.float32).tiny
            return {name: s / s.square().mean().sqrt().clamp(min=tiny) for name, s in scores.items()}
        return scores


class MagnitudePerBit(RowScore):
    """w^2 over the bits that the weight takes in a file: what is lost by removing it for each bit saved.

    A weight costs its value, `value_bits`, and its position. With the weights that are left it is the more
    expensive the emptier its row and its column are: -log2 p, where the odds of p are those of the row times
    those of the column over those of the layer. So the last weights of an output or of an input go early, and
    what is left lies closer together. Ranked over all layers it is the choice of least squared change for a
    number of bits, as the costs now are.

    Attributes:
        value_bits: of a weight's value; the smaller, the more its position counts.
    """

    name = "magnitude_per_bit"
    paper = "after Chou, Lookabaugh, Gray 1989 (entropy-constrained quantization), with costs of positions"
    by_layer = True
    comparable = ("weights",)
    value_bits: float = Field(default=2.5, ge=0, le=LARGE)

    def __call__(self, context: StepContext) -> Scores:
        """The shares, in float64."""
        scores = {}
        for name, weight in context.weights.items():
            layer = context.layer(name)
            bits = position_bits(rows_of(weight, layer) != 0) + self.value_bits
            scores[name] = weight.double().square() / from_rows(bits, layer)
        return scores


def position_bits(kept: Tensor) -> Tensor:
    """The bits by which it is told that a weight is there, from how full its row and its column are.

    Args:
        kept: boolean, (groups, rows, columns).

    Returns:
        float64 of the same shape; shares of ones are counted with half a weight more, so that none is 0.
    """
    present = kept.double()
    (rows, columns), everywhere = kept.shape[1:], present.mean((1, 2), keepdim=True)
    odds = _odds(present.mean(2, keepdim=True) + 0.5 / columns)
    odds = (
        odds * _odds(present.mean(1, keepdim=True) + 0.5 / rows) / _odds(everywhere + 0.5 / (rows * columns))
    )
    return torch.log2(1 + 1 / odds)


def _odds(share: Tensor) -> Tensor:
    share = share.clamp(max=1 - 1e-4)
    return share / (1 - share)


class LAMP(Score):
    """w^2 over the sum of all w^2 of the layer that are at least as large, the weight's own included.

    The layer-adaptive score: ranked over all layers, it gives each the sparsity at which its share of what is
    left of the layer weighs the same. A layer's last weight scores 1, the most there is. Of equal weights the
    first by position counts as the smaller one.
    """

    name = "lamp"
    paper = "Lee, Park, Mo, Ahn, Shin 2021, arXiv 2010.07611"
    by_layer = True
    comparable = ("weights",)

    def __call__(self, context: StepContext) -> Scores:
        """The shares, in float64."""
        return {name: self._layer(weight) for name, weight in context.weights.items()}

    @staticmethod
    def _layer(weight: Tensor) -> Tensor:
        squares, order = weight.flatten().double().square().sort(stable=True)
        at_least_as_large = squares.flip(0).cumsum(0).flip(0)
        shares = squares / at_least_as_large.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.empty_like(shares).scatter_(0, order, shares).view(weight.shape)


class Gradient(Score):
    """|dL/dw|: weights that the loss does not pull at go first.

    The baseline that is published under this name has the factor |w| as well, which is `weight_gradient`.
    """

    name = "gradient"
    paper = "Blalock et al. 2020, arXiv 2003.03033, without their factor |w|"
    comparable = ("weights",)
    needs = (MeanGradient(),)

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values of the mean gradient."""
        return {name: gradient.abs() for name, gradient in context.statistics[MeanGradient()].items()}


class WeightGradient(Score):
    """|w dL/dw|: the first-order change of the loss when the weight is set to zero (SNIP).

    SNIP takes it before training; on a trained network it is the first-order Taylor criterion, and the
    gradient baseline of Blalock et al. 2020 (arXiv 2003.03033).
    """

    name = "weight_gradient"
    paper = "Lee, Ajanthan, Torr 2019 (SNIP), arXiv 1810.02340"
    comparable = tuple(LEVELS)
    needs = (MeanGradient(),)

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values of weight times mean gradient."""
        gradients = context.statistics[MeanGradient()]
        return {name: (weight * gradients[name]).abs() for name, weight in context.weights.items()}


class Movement(Score):
    """-sum of w dL/dw over the steps of the training: weights that training moves towards zero go first.

    The sum runs over every step of an optimizer: those of `training`, which comes before the first removal,
    and of all retrainings after it; in a loop of the user's over those of the loop. The gradients are those
    of the loss, without penalties and weight decay. The paper's learning rate of the scores is one factor of
    all of them, so it does not matter here. Removed weights are zero, so that their sums stand still; in the
    paper they are kept behind the mask and may come back.

    Attributes:
        training: before the first removal; it does not act in a loop of the user's.
    """

    name = "movement"
    paper = "Sanh, Wolf, Rush 2020, arXiv 2005.07683"
    comparable = ("weights",)  # sums over a unit grow with its size
    training: TrainingSettings = Field(default_factory=Training)

    @property
    def warm_up(self) -> Training:  # type: ignore[override]
        """The training."""
        return self.training

    def initial_state(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """The sums so far, by parameter, in float32 or the weights' own higher precision."""
        weights = {name: model.get_parameter(name).detach() for name in names}
        return {
            name: torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for name, weight in weights.items()
        }

    def before_optimizer_step(self, context: StepContext) -> None:
        """Add what this step has to say; frozen weights do not move."""
        for name, total in context.state.items():
            weight = context.model.get_parameter(name)
            if weight.grad is not None:
                total.addcmul_(weight.detach().to(total), weight.grad.to(total), value=-1)

    def __call__(self, context: StepContext) -> Scores:
        """The sums, on the weights' devices."""
        return {
            name: context.state[name].to(weight.device, copy=True) for name, weight in context.weights.items()
        }


class InputScore(RowScore):
    """|w| times a figure of the input that the weight reads."""

    by_layer = True

    def __call__(self, context: StepContext) -> Scores:
        """The products, in float64, or what they are compared by."""
        return {name: self._layer(context, name) for name in context.weights}

    def _layer(self, context: StepContext, name: str) -> Tensor:
        layer = context.layer(name)
        squares = context.statistics[self.squares(layer)][name]
        rows = rows_of(context.weights[name], layer)
        return from_rows(self.compared(rows, squares.sqrt().unsqueeze(1)), layer)

    @abstractmethod
    def squares(self, layer: nn.Module) -> InputSquares:
        """The statistic whose root is the figure."""

    def product(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """The scores of |weights| (groups, rows, columns) and figures of inputs (groups, 1, columns)."""
        return rows * inputs

    def compared(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """(groups, rows, columns): the numbers by which the weights of a layer are compared."""
        return self.product(rows.double().abs(), inputs)


class InputDeviation(InputScore):
    """|w| std(x): how much the output moves with the input that the weight reads.

    In a layer without a bias, where a constant input is not made up for, the root mean square takes the place
    of the deviation. Its square is twice the layer's error when the weight alone is removed and nothing but
    the bias makes up for it; with the repair `masked_least_squares` it is the cheap rival of exact OBS.
    """

    name = "input_deviation"
    paper = "Sun et al. 2023 (Wanda), arXiv 2306.11695, about the mean"
    comparable = ("weights",)
    needs = (InputSquares(centred=True), InputSquares(centred=False))

    def squares(self, layer: nn.Module) -> InputSquares:
        """About the mean where there is a bias."""
        return InputSquares(centred=getattr(layer, "bias", None) is not None)


_RANKED_TOGETHER = 2**20
"""Weights whose products and places are held at a time: they take eight times the memory of the weights."""


_NOT_OF_UNITS = Requirement(
    "granularity",
    lambda granularity: granularity.level != "units",
    "{part} ranks weights within each row, so that all units of a layer tie: set its `within` to 'layer'",
)


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

    @property
    def comparable(self) -> tuple[Level, ...]:  # type: ignore[override]
        """Not as ranks, of which the longest rows have the highest."""
        return () if self.within == "row" else ("weights",)

    @property
    def requires(self) -> tuple[Requirement, ...]:  # type: ignore[override]
        """As ranks it tells no row from another, and so no unit."""
        return () if self.within == "layer" else (_NOT_OF_UNITS,)

    def solving_seconds(self, rows: int, columns: int, sparsity: float, rates: Rates) -> float:
        """Ranks within rows."""
        return rows * columns / rates.ranked if self.within == "row" else 0.0

    def working_bytes(self, rows: int, columns: int) -> int:
        """Ranks in 4 bytes each, and of some rows products, their magnitudes, and the products and places of
        those before."""
        if self.within == "layer":
            return super().working_bytes(rows, columns)
        return 4 * rows * columns + 4 * 8 * min(rows * columns, _RANKED_TOGETHER)

    def squares(self, layer: nn.Module) -> InputSquares:
        """About zero."""
        return InputSquares(centred=False)

    def compared(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """The products, or their ranks within rows, from 0; equal products by position."""
        if self.within == "layer":
            return super().compared(rows, inputs)
        count = rows.shape[2]
        exact = torch.float32 if count <= 2**24 else torch.float64  # every whole number up to there
        found = torch.empty_like(rows, dtype=exact)
        places = torch.arange(count, dtype=exact, device=rows.device)
        together = max(1, _RANKED_TOGETHER // max(1, len(rows) * count))
        for some, ranks in zip(torch.split(rows, together, 1), torch.split(found, together, 1), strict=True):
            products = self.product(some.double().abs(), inputs)
            order = stable_order(products.flatten(0, 1)).view(products.shape)
            ranks.scatter_(2, order, places.expand_as(order))
        return found


class RIA(InputScore):
    """Relative importance and activations: the weight's share of its input and of its output, times ||x||^a.

    |w| over the sum of |w| of all weights that read the same input, plus |w| over that of all weights of the
    same output, times a power of the root mean square of the input. No input or output is lost as a whole
    because its weights are small.

    Attributes:
        power: a, the power of the input's root mean square.
    """

    name = "ria"
    paper = "Zhang, Bai, Lin, Zhao, Hou, Cannistraci 2024, ICLR, openreview Tr0lPx9woF"
    comparable = ("weights",)
    needs = (InputSquares(centred=False),)
    power: float = Field(default=0.5, ge=0, le=LARGE)

    def squares(self, layer: nn.Module) -> InputSquares:
        """About zero."""
        return InputSquares(centred=False)

    def product(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """The sum of both shares, times the power."""
        tiny = torch.finfo(rows.dtype).tiny
        of_input, of_output = (rows.sum(axis, keepdim=True).clamp(min=tiny) for axis in (1, 2))
        return (rows / of_input + rows / of_output) * inputs**self.power


class Correlation(RowScore):
    """|r|: the correlation of the activations at the two ends of the connection; the weakest go first.

    A convolution's weight has the mean of |r| over the positions that it serves. The upper end is the neuron
    behind its batch norm and activation function, where they follow the layer directly; where the network
    cannot be traced, it is the layer's own output. By itself this keeps the strongest connections; the
    published method draws at random in two halves of them, which is the selection `correlated_halves`.
    """

    name = "correlation"
    paper = "Sun, Wang, Tang 2016, CVPR, arXiv 1512.01891"
    comparable = ("weights",)
    needs = (ConnectionCorrelation(),)

    def __call__(self, context: StepContext) -> Scores:
        """Absolute values, in float64."""
        found = context.statistics[ConnectionCorrelation()]
        return {name: found[name].abs() for name in context.weights}
