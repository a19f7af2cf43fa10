"""Weights of each layer on a grid by second order, with the bits of their levels in what is minimised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.errors import DataError
from prunekit.graph.rows import from_rows, row_layers, rows_of
from prunekit.obs import Grid, damped_groups, rate_aware
from prunekit.parts.context import StepContext
from prunekit.parts.quantize.base import FewValues, LayerQuantizer, Step, within
from prunekit.parts.quantize.shared_values import SharedValues
from prunekit.parts.quantize.symbol_costs import SymbolCosts
from prunekit.settings import LARGE
from prunekit.statistics import LayerHessian, LayerInputMean
from prunekit.training import Training


class RateAwareGrid(LayerQuantizer):
    """Each layer's weights on a uniform grid, column by column; the columns behind make up for the change.

    Of each layer the least is sought of E / E_0 + rate * bits / weights, with E the squared error of the
    layer's outputs on the calibration sample, E_0 that of an output of 0 (for layers with a bias: of its
    mean), the bits those of the layer's levels by a model of the coder, see
    `prunekit.parts.quantize.symbol_costs`, and the weights those of the whole network. Biases make up for
    changed means. Zero is mostly the cheapest level, so that it prunes as well. With a `training` the values
    of the levels are then trained as shared values.

    Attributes:
        rate: of a bit per weight.
        step: between two levels of a layer, in units of the root mean square of its nonzero weights; of
            several the one with which the layer comes to the least.
        keep_zeros: whether weights that are zero stay zero, also where the masks of the recipe keep them.
        passes: how often a layer is gone through; in each pass the model of the coder is that of the levels
            of the one before it, at first of the rounded weights. The best pass counts.
        damp: added to the Hessian's diagonal, relative to its mean over the live inputs.
    """

    name = "second_order"
    paper = "Conzelmann, Bamler 2025 (CERWU), arXiv 2505.18758"
    measures = (LayerHessian(), LayerInputMean())
    needs_data = True

    rate: float = Field(default=0.1, ge=0, le=LARGE)
    step: Annotated[Step | tuple[Step, ...], within(0.01, 100, of=list)] = 0.5
    keep_zeros: bool = True
    passes: int = Field(default=2, ge=1, le=100)
    damp: float = Field(default=0.01, ge=0, le=LARGE)

    def check(self, model: nn.Module) -> None:
        """Only linear and convolution layers can be judged by their inputs."""
        row_layers(model, [target.name for target in self.targets(model)])

    def stages(self, context: StepContext) -> Iterator[tuple[FewValues, Training | None]]:
        """One layer after the other, by the inputs that all had before."""
        names = self.filled(context.model)
        total = sum(context.model.get_parameter(name).numel() for name in names)
        with torch.no_grad():
            for name in names:
                try:
                    self._choose(name, context, total)
                except DataError as error:
                    raise DataError(f"{name}: {error}") from None
        yield SharedValues(context.model, names, half=self.half_biases), self.training

    def _choose(self, name: str, context: StepContext, total: int) -> None:
        layer: Any = context.layer(name)
        rows = rows_of(layer.weight, layer).double()
        present = rows[rows != 0]
        if not len(present):
            return
        hessians = damped_groups(name, context.statistics[LayerHessian()][name], self.damp)
        energy = sum(float((part @ each * part).sum()) for part, each in zip(rows, hessians, strict=True))
        rate = self.rate * energy / (2 * total)  # of a bit, where the error is half the squared one
        scale = float(present.square().mean().sqrt())
        steps = self.step if isinstance(self.step, tuple) else (self.step,)
        kept = torch.ones_like(rows, dtype=torch.bool)
        if name in context.masks:
            kept = rows_of(context.masks[name].to(rows.device), layer)
        tried = [each for step in steps for each in self._passes(rows, kept, hessians, rate, step * scale)]
        _, best = min(tried, key=lambda each: each[0])
        if getattr(layer, "bias", None) is not None:
            mean = context.statistics[LayerInputMean()][name]
            layer.bias.copy_(layer.bias.double() + ((rows - best) @ mean.unsqueeze(2)).flatten())
        layer.weight.copy_(from_rows(best, layer))

    def _passes(
        self, rows: Tensor, kept: Tensor, hessians: list[Tensor], rate: float, step: float
    ) -> Iterator[tuple[float, Tensor]]:
        """The loss of each pass, by the model that its own levels make, and the rows (groups, rows, columns).

        Costs are compared by the levels that are there in the end: the model that chose them is of others.
        """
        levels = (rows / step).round()
        costs = SymbolCosts.of(levels.flatten(0, 1), torch.float64, magnitudes="counted")
        for number in range(self.passes):
            most = int(levels.abs().max()) + 1
            numbers = torch.arange(-most, most + 1, device=rows.device)
            values = numbers.double() * step
            sizes = costs.magnitudes[numbers.abs().clamp_max(len(costs.magnitudes) - 1)]
            flags = (costs.nonzero - costs.zero).view(rows.shape)
            if number == 0:  # where few are zero by rounding alone, zero is not to be dear from the beginning
                flags = flags.clamp_min(0)
            found = []
            for group, (part, matrix) in enumerate(zip(rows, hessians, strict=True)):
                mask = kept[group] & (part != 0) if self.keep_zeros else kept[group]
                grid = Grid(values, flags[group], sizes)
                found.append(numbers[rate_aware(matrix, part, grid, rate, mask=mask).chosen])
            levels = torch.stack(found).double()
            costs = SymbolCosts.of(levels.flatten(0, 1), torch.float64, magnitudes="counted")
            moved = levels * step - rows
            error = sum(
                float((part @ each * part).sum()) / 2 for part, each in zip(moved, hessians, strict=True)
            )
            yield error + rate * float(costs.bits(levels.flatten(0, 1)).sum()), levels * step
