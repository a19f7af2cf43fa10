"""Optimal brain surgeon by the empirical Fisher matrix, in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from prunekit.batches import Batch
from prunekit.errors import DataError
from prunekit.limits import LARGE, WHOLE
from prunekit.parts.context import Score, Scores, StepContext
from prunekit.statistics import Collector, StatContext, Statistic, means_over_processes


class BlockFisher(Score):
    """w^2 / (2 [F^-1]_qq): the saliency of optimal brain surgeon with the empirical Fisher matrix, in blocks.

    F is the mean of g g' over the gradients g of each example's loss, taken block by block along every
    weight's memory; what lies outside of the blocks is left out.

    Attributes:
        block: weights in a block; memory grows with it: so many float64 numbers for each weight.
        damp: added to the diagonal, relative to its mean over the weight tensor.
    """

    name = "block_fisher"
    paper = (
        "Singh, Alistarh 2020 (WoodFisher), arXiv 2004.14340; Kurtic et al. 2022 (oBERT), arXiv 2203.07259"
    )
    block: int = Field(default=50, ge=1, le=WHOLE)
    damp: float = Field(default=1e-4, gt=0, le=LARGE)

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The blocks."""
        return (FisherBlocks(self.block),)

    def __call__(self, context: StepContext) -> Scores:
        """The saliencies, in float64."""
        return {name: self._layer(context, name) for name in context.weights}

    def _layer(self, context: StepContext, name: str) -> Tensor:
        weight, blocks = context.weights[name], context.statistics[FisherBlocks(self.block)][name]
        diagonal = blocks.diagonal(dim1=1, dim2=2)
        mean = diagonal.sum() / weight.numel()
        if mean == 0:  # nothing moves the loss
            return torch.zeros_like(weight, dtype=torch.float64)
        damped_blocks = blocks + torch.diag_embed(self.damp * mean.expand_as(diagonal))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped_blocks)).diagonal(dim1=1, dim2=2)
        squares = weight.double().flatten().square()
        return (squares / (2 * inverse.flatten()[: len(squares)])).view(weight.shape)


@dataclass(frozen=True)
class FisherBlocks(Statistic):
    """By weight: (blocks, size, size) float64, the diagonal blocks of the loss's empirical Fisher matrix.

    The mean over examples of g g', with g the gradient of an example's loss, flattened and cut into blocks of
    consecutive weights; the last block is filled up with zeros.

    Attributes:
        size: weights in a block.
    """

    size: int = 50

    needs_loss = False
    additive = True

    def start(self, subject: StatContext) -> Collector:
        """A collector of the gradients of examples; `.grad` of the parameters is not touched."""
        return _FisherBlocks(subject, self.size)


class _FisherBlocks(Collector):
    _TOGETHER = 32  # examples whose gradients are held at once

    def __init__(self, subject: StatContext, size: int) -> None:
        self._subject, self._size = subject, size
        self._weights = {
            name: subject.model.get_parameter(name).detach().requires_grad_() for name in subject.names
        }
        self._sums = {
            name: torch.zeros(-(-len(flat) // size), size, size, dtype=torch.float64, device=flat.device)
            for name, flat in ((name, weight.flatten()) for name, weight in self._weights.items())
        }
        self._examples = 0

    def batch(self, batch: Batch, loss: Tensor) -> None:
        for inputs, targets in zip(*(torch.split(each, self._TOGETHER) for each in batch), strict=True):
            gradients = [self._gradients(*example) for example in zip(inputs, targets, strict=True)]
            for total, each in zip(self._sums.values(), zip(*gradients, strict=True), strict=True):
                flat = torch.stack([gradient.flatten() for gradient in each]).double()
                missing = len(total) * self._size - flat.shape[1]
                rows = F.pad(flat, (0, missing)).view(len(flat), -1, self._size).movedim(0, 1)
                total.baddbmm_(rows.mT, rows)
            self._examples += len(inputs)

    def _gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        assert self._subject.loss is not None
        with torch.enable_grad():
            outputs = functional_call(self._subject.model, self._weights, (inputs.unsqueeze(0),))
            loss = self._subject.loss(outputs, targets.unsqueeze(0))
        return torch.autograd.grad(loss, list(self._weights.values()), materialize_grads=True)

    def finish(self) -> dict[str, Tensor]:
        found = means_over_processes(self._sums, self._examples)
        for name, total in found.items():
            if not bool(total.isfinite().all()):
                raise DataError(f"the gradients of the loss by {name} are not finite on the calibration data")
        return found
