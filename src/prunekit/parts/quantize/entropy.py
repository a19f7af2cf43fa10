"""Retraining with the bits of a file in the loss: weights rounded to a grid, and what their levels cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from prunekit.parts.context import StepContext
from prunekit.parts.quantize.base import (
    FewValues,
    HeldTensor,
    LayerQuantizer,
    Step,
    rounded_to_half,
    training_or_none,
)
from prunekit.parts.quantize.shared_values import SharedValues
from prunekit.parts.quantize.symbol_costs import Magnitudes, SymbolCosts
from prunekit.settings import LARGE, WHOLE
from prunekit.training import Training

LEVELS = 1 << 12
"""The greatest magnitude of a level."""


class EntropyTraining(LayerQuantizer):
    """Weights trained behind a rounding to a uniform grid, with the bits of their levels in the loss.

    The network computes with rounded weights; their gradients move the real ones that are rounded
    (straight-through). The loss is that of the recipe plus rate * bits / weights, where `bits` is what a
    model of the coder says of the levels, linear between one level and the next: see
    `prunekit.parts.quantize.symbol_costs`. The model is made anew every `refresh` steps. At the end the
    weights are on the grid; with `refine` the values of the levels are then trained as shared values.

    Attributes:
        training: of the real weights.
        step: between two levels of a layer, in units of the root mean square of its nonzero weights.
        learn_step: whether the step of each layer is trained, too.
        rate: of a bit per weight in the loss.
        refresh: steps of the optimizer for which the model of the coder stands still.
        magnitudes: how the model predicts those of levels: `geometric`, by which less is never dearer, or as
            `counted`, which draws them to the most frequent ones.
        revive: whether a weight whose level has become zero may come back while it is trained. What the
            masks of the recipe have removed never does, nor what was zero before.
        refine: how the values of the levels are trained in the end; None for not at all, so that they are
            on a uniform grid.
    """

    name = "entropy"
    paper = "Oktay, Ballé, Singh, Shrivastava 2020, arXiv 1906.06624; straight-through: arXiv 1308.3432"

    training: Annotated[Training, BeforeValidator(Training.parse)] = Field(default_factory=Training)
    step: Step = 0.5
    learn_step: bool = False
    rate: float = Field(default=1.0, ge=0, le=LARGE)
    refresh: int = Field(default=20, ge=1, le=WHOLE)
    magnitudes: Magnitudes = "geometric"
    revive: bool = True
    refine: Annotated[Training | None, BeforeValidator(training_or_none)] = None

    @property
    def plans(self) -> tuple[Training, ...]:  # type: ignore[override]
        """Both trainings."""
        return self.training, *(() if self.refine is None else (self.refine,))

    def stages(self, context: StepContext) -> Iterator[tuple[FewValues, Training | None]]:
        """The weights on their grid; then the values of its levels."""
        names = [target.name for target in self.targets(context.model)]
        half = self.half_biases and self.refine is None
        yield RoundedWeights(context.model, names, self, half=half), self.training
        if self.refine is not None:
            yield SharedValues(context.model, names, half=self.half_biases), self.refine


class RoundedWeights(FewValues):
    """Weights that are rounded to a grid whenever the network runs, and real whenever they are moved.

    Args:
        model: the network.
        names: of the weights.
        settings: of the training.
        half: whether the values are rounded to half precision in the end.
    """

    def __init__(self, model: nn.Module, names: list[str], settings: EntropyTraining, *, half: bool) -> None:
        parameters = {name: model.get_parameter(name) for name in names}
        total = sum(each.numel() for each in parameters.values())
        rate = settings.rate / max(total, 1)
        tensors = [_Rounded(weight, settings, rate) for weight in parameters.values()]
        super().__init__("quantize entropy", tensors, half=half)


class _Rounded(HeldTensor):
    """One weight tensor, and of it the places that are not zero when it begins."""

    def __init__(self, weight: nn.Parameter, settings: EntropyTraining, rate: float) -> None:
        self._settings, self._rate = settings, rate
        flat = weight.detach().flatten()
        self._places = flat.nonzero().flatten()
        self._real = flat[self._places]
        # squares of what half precision holds are often none that it does
        present = self._real.double()
        most = present.abs().max() if len(present) else present.new_ones(())
        scale = most * (present / most).square().mean().sqrt() if len(present) else most
        self._start = (settings.step * scale).to(flat.dtype)
        # the step is start * exp(logarithm), which weight decay draws back to the start
        self.logarithm = nn.Parameter(flat.new_zeros(()), requires_grad=settings.learn_step)
        super().__init__(weight, self.logarithm)
        self._count = 0
        self._first = self._more = flat
        self._write()

    @property
    def _step(self) -> Tensor:
        return self._start * self.logarithm.detach().exp()

    def _levels(self) -> Tensor:
        return (self._real / self._step).nan_to_num(0.0).clamp(-LEVELS, LEVELS).round()

    @torch.no_grad()
    def settle(self, half: bool) -> None:
        """The nearest level of what the weights are, which an average over the training may have set."""
        self._real = self.weight.detach().flatten()[self._places]
        self._write(half=half)

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        """The real weights, with the gradient of the loss and that of the bits."""
        gradient = self.weight.grad
        if self._count % self._settings.refresh == 0:
            self._look()
        self._count += 1
        self._spread(self._real)
        if gradient is None:
            return
        step = self._step
        scaled = self._real / step
        size = scaled.abs()
        # a training that diverges is told by its loss
        below = size.floor().nan_to_num(0.0).clamp_max(len(self._more) - 1).long()
        slope = torch.where(below == 0, self._first, self._more[below]) * self._rate
        of_loss = gradient.flatten()[self._places]
        if self.logarithm.requires_grad:
            # of the rounded weight step * round(w / step), and of the bits, by the logarithm of the step
            along = of_loss * step * (scaled.round() - scaled) - slope * size
            self.logarithm.grad = along.sum()
        moved = of_loss + slope * scaled.sign() / step
        gradient.zero_()
        flat = gradient.new_zeros(gradient.numel())
        flat[self._places] = moved
        gradient.copy_(flat.view(gradient.shape))

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        """The weights that the step has made, rounded."""
        self._real = self.weight.detach().flatten()[self._places]
        if not self._settings.revive:
            alive = self._levels() != 0
            self._places, self._real = self._places[alive], self._real[alive]
            self._first = self._first[alive]
        self._write()

    def _look(self) -> None:
        """The model of the coder, by the levels that there are now."""
        flat = self._real.new_zeros(self.weight.numel())
        flat[self._places] = self._levels()
        costs = SymbolCosts.of(
            flat.view(self.weight.flatten(1).shape), self._real.dtype, magnitudes=self._settings.magnitudes
        )
        first, self._more = costs.steps()
        self._first = first.flatten()[self._places]

    def _write(self, *, half: bool = False) -> None:
        if half:  # with a step of 8 digits its multiples up to 8 are numbers of half precision as they are
            self._spread(rounded_to_half(self._levels() * self._step.bfloat16().to(self._step.dtype)))
        else:
            self._spread(self._levels() * self._step)

    @torch.no_grad()
    def _spread(self, values: Tensor) -> None:
        flat = values.new_zeros(self.weight.numel())
        flat[self._places] = values
        self.weight.copy_(flat.view(self.weight.shape))
