"""Scores by second derivatives: optimal brain damage and surgeon, of a network, a layer, or in blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from prunekit.batches import Batch, arguments
from prunekit.distributed import means_over_processes, shared_rows
from prunekit.errors import DataError
from prunekit.graph.rows import from_rows, rows_of
from prunekit.obs import damped, damped_groups, eliminate, inverse_of, removal_scores, shared_saliency
from prunekit.obs.rates import Rates
from prunekit.obs.row_elimination import BUDGET_BYTES as ELIMINATION_BYTES
from prunekit.parts.base import LEVELS, Level
from prunekit.parts.context import Score, Scores, StepContext
from prunekit.parts.scores.weight_scores import RowScore
from prunekit.settings import LARGE, WHOLE
from prunekit.statistics import (
    Collector,
    GaussNewton,
    GaussNewtonDiagonal,
    LayerHessian,
    RecursiveDiagonal,
    StatContext,
    Statistic,
)
from prunekit.statistics.curvature import check_size


class OBD(RowScore):
    """h w^2 / 2: what the loss rises by, to second order, when the weight alone is set to zero.

    h is the diagonal of the Hessian in its Gauss-Newton form, exact for each weight: the square of every
    example's derivatives, in all directions of the outputs. The paper goes back through the layers with
    squares instead, which leaves out how units of a layer act together, and positions that share weights.

    Attributes:
        form: of the curvature: exact, or as published, without second derivatives of the activations; the
            published one is for chains of layers.
    """

    name = "obd"
    paper = "LeCun, Denker, Solla 1990, NIPS 2"
    comparable = tuple(LEVELS)
    form: Literal["exact", "published"] = "exact"

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The curvature."""
        return (GaussNewtonDiagonal() if self.form == "exact" else RecursiveDiagonal(),)

    def __call__(self, context: StepContext) -> Scores:
        """The saliencies, in float64."""
        diagonal = context.statistics[self.needs[0]]
        return {
            name: diagonal[name] * weight.double().square() / 2 for name, weight in context.weights.items()
        }


class OBS(RowScore):
    """When optimal brain surgeon removes the weight: the rise of the loss, made increasing.

    One weight of the whole network after the other, always the one whose removal raises the loss least, and
    after every removal all others make up for it: those of other layers, and the biases, which are never
    removed. The Hessian is that of Gauss and Newton at the trained weights. Its size limits the network to
    5,000 weights; the repair `obs` puts the survivors to the values that this leads to.

    Attributes:
        damp: added to the Hessian's diagonal, relative to its mean.
        precision: of the elimination.
    """

    name = "obs"
    paper = "Hassibi, Stork 1993, NIPS 5"
    comparable = tuple(LEVELS)
    needs = (GaussNewton(),)
    damp: float = Field(default=1e-4, ge=0, le=LARGE)
    precision: Literal["float32", "float64"] = "float64"

    def check(self, context: StepContext) -> None:
        """The Hessian of all weights must fit.

        Raises:
            InputError: naming the number of weights.
            ModelError: naming a layer that is neither linear nor a convolution.
        """
        super().check(context)
        check_size(context.model, list(context.weights))

    def __call__(self, context: StepContext) -> Scores:
        """The losses, in float64."""
        rows = context.statistics[GaussNewton()]
        names = [name for name in rows if name in context.weights]
        weights = torch.cat([context.weights[name].flatten() for name in names]).double().unsqueeze(0)
        kept = weights != 0
        if not context.of_units:
            kept &= torch.cat([context.kept[name].flatten() for name in names])
        elimination = eliminate(
            self._free_biases(rows, names), weights, kept, dtype=getattr(torch, self.precision)
        )
        sizes = [context.weights[name].numel() for name in names]
        scores = torch.split(removal_scores(elimination)[0], sizes)
        return {
            name: each.view(context.weights[name].shape) for name, each in zip(names, scores, strict=True)
        }

    def _free_biases(self, rows: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        """The Hessian by the weights where the biases are always at their best: a Schur complement."""
        matrix, live = damped(torch.cat(list(rows.values())), self.damp, of="weights")
        weights = torch.cat(
            [torch.full((len(each),), name in names, device=matrix.device) for name, each in rows.items()]
        )
        across = matrix[weights][:, ~weights & live]
        lower, failed = torch.linalg.cholesky_ex(matrix[~weights & live][:, ~weights & live])
        if bool(failed):
            raise DataError("the Hessian by the biases is singular: give a damp > 0 (1e-4 is a good value)")
        return matrix[weights][:, weights] - across @ torch.cholesky_solve(across.T, lower)


class LayerOBS(RowScore):
    """When exact layer-wise OBS removes the weight: the loss of its removal, made increasing along its row.

    Each row of a layer loses one weight after the other, always the one whose removal costs the layer's own
    error E = 1/2 mean |change of W x|^2 least, and after **every** removal the other weights of the row make
    up for it. The order is the score; the repair `masked_least_squares` puts the survivors at any cut to the
    values that OBS would have led to. The bias is free: it makes up for removals, too. Weights that are zero
    already count as removed. With a pattern n:m the order is the best within it.

    Attributes:
        form: `exact`, or `shared`: the published saliency w^2 / (2 [H^-1]_qq), one inverse for all rows,
            which is right for one removal per row and to be renewed often (schedule `fixed_count`).
        damp: added to the Hessian's diagonal, relative to its mean over the live inputs.
        relative_to: what the losses of a layer are divided by, which matters where layers compete: by the
            variance of its outputs, added up over them, a loss is a share of what the layer says.
        precision: of the elimination; sums and factorisations are in float64 in any case.
    """

    name = "layer_obs"
    paper = "Dong, Chen, Pan 2017, arXiv 1705.07565; exact: Frantar, Singh, Alistarh 2022, arXiv 2208.11580"
    by_layer = True
    compared_if_named = ("weights",)
    needs = (LayerHessian(),)
    form: Literal["exact", "shared"] = "exact"
    damp: float = Field(default=0.01, ge=0, le=LARGE)
    relative_to: Literal["nothing", "output_variance"] = "output_variance"
    precision: Literal["float32", "float64"] = "float32"

    @property
    def comparable(self) -> tuple[Level, ...]:  # type: ignore[override]
        """As a share of the output's variance, but for units: weights that go together are not their sum.

        The error itself is as large as the layer's outputs.
        """
        return ("weights", "patterns") if self.relative_to == "output_variance" else ()

    def solving_seconds(self, rows: int, columns: int, sparsity: float, rates: Rates) -> float:
        """One elimination for each row, or an inverse for all."""
        inverse = columns**3 * 4 / 3 / rates.factorised
        return inverse + (rates.elimination(rows, columns) if self.form == "exact" else 0.0)

    def working_bytes(self, rows: int, columns: int) -> int:
        """Inverses, one for each row of a batch, of which one always goes, or the losses of all rows in their
        order while they become scores."""
        if self.form == "shared":
            return super().working_bytes(rows, columns)
        weights = 8 * rows * columns
        together = 8 * columns**2 * min(rows, max(1, ELIMINATION_BYTES // (8 * columns**2)))
        return 4 * 8 * columns**2 + max(6 * weights + together, 12 * weights)

    def __call__(self, context: StepContext) -> Scores:
        """The losses, (float64) infinite for what a pattern never removes."""
        return {name: self._layer(context, name) for name in context.weights}

    def _layer(self, context: StepContext, name: str) -> Tensor:
        layer, hessians = context.layer(name), context.statistics[LayerHessian()][name]
        rows = rows_of(context.weights[name], layer).double()
        kept = rows != 0
        if name in context.kept:  # not where units are counted
            kept &= rows_of(context.kept[name], layer)
        matrices = damped_groups(name, hessians, self.damp)
        variance = self._variance(rows, hessians)
        if self.form == "shared":
            scores = [
                shared_saliency(inverse_of(matrix), group) / variance
                for matrix, group in zip(matrices, rows, strict=True)
            ]
        else:
            width = context.weights[name][0, 0].numel()  # positions of a kernel
            spacing = width if context.pattern else 1

            def eliminated(part: slice) -> Tensor:
                """Of rows of the layer, numbered over all its groups."""
                found = []
                for number, matrix in enumerate(matrices):
                    first = number * rows.shape[1]
                    own = slice(max(part.start - first, 0), max(part.stop - first, 0))
                    if len(rows[number, own]):
                        removals = eliminate(
                            matrix,
                            rows[number, own],
                            kept[number, own],
                            pattern=context.pattern,
                            spacing=spacing,
                            dtype=getattr(torch, self.precision),
                        )
                        found.append(removal_scores(removals, variance))
                return torch.cat(found)

            return from_rows(
                shared_rows(torch.empty_like(rows).flatten(0, 1), eliminated).view_as(rows), layer
            )
        return from_rows(torch.stack(scores), layer)

    def _variance(self, rows: Tensor, hessians: Tensor) -> float:
        if self.relative_to == "nothing":
            return 1.0
        variance = float(((rows @ hessians) * rows).sum())
        return variance if variance > 0 else 1.0


class BlockFisher(Score):
    """w^2 / (2 [F^-1]_qq): the saliency of optimal brain surgeon with the empirical Fisher matrix, in blocks.

    F is the mean of g g' over the gradients g of each example's loss, taken block by block along every
    weight's memory; what lies outside of the blocks is left out.

    Attributes:
        block: weights in a block, at most all of a tensor; memory grows with it: so many float64 numbers for
            each weight.
        damp: added to the diagonal, relative to its mean over the weight tensor.
    """

    name = "block_fisher"
    paper = (
        "Singh, Alistarh 2020 (WoodFisher), arXiv 2004.14340; Kurtic et al. 2022 (oBERT), arXiv 2203.07259"
    )
    comparable = ("weights",)
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
        lower, failed = torch.linalg.cholesky_ex(damped_blocks)
        if bool(failed.any()):
            raise DataError(
                f"the Fisher matrix of {name} is singular with damp = {self.damp:g}: give a larger damp "
                "(1e-4 is a good value)"
            )
        inverse = torch.cholesky_inverse(lower).diagonal(dim1=1, dim2=2)
        squares = weight.double().flatten().square()
        return (squares / (2 * inverse.flatten()[: len(squares)])).view(weight.shape)


@dataclass(frozen=True)
class FisherBlocks(Statistic):
    """By weight: (blocks, size, size) float64, the diagonal blocks of the loss's empirical Fisher matrix.

    The mean over examples of g g', with g the gradient of an example's loss, flattened and cut into blocks of
    consecutive weights; the last block is filled up with zeros. A smaller tensor is one block. An example
    counts by the terms of its loss: g is the gradient of their sum over the mean number of terms.

    Attributes:
        size: weights in a block.
    """

    size: int = 50

    needs_loss = False
    takes_loss = True
    additive = True

    def start(self, subject: StatContext) -> Collector:
        """A collector of the gradients of examples; `.grad` of the parameters is not touched."""
        return _FisherBlocks(subject, self.size)


class _FisherBlocks(Collector):
    _TOGETHER = 32  # examples whose gradients are held at once

    def __init__(self, subject: StatContext, size: int) -> None:
        self._subject = subject
        self._weights = {
            name: subject.model.get_parameter(name).detach().requires_grad_() for name in subject.names
        }
        self._sums = {
            name: self._blocks(weight.numel(), min(size, weight.numel()), weight.device)
            for name, weight in self._weights.items()
        }
        self._examples, self._terms = 0, 0.0

    @staticmethod
    def _blocks(weights: int, size: int, device: torch.device) -> Tensor:
        return torch.zeros(-(-weights // size), size, size, dtype=torch.float64, device=device)

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        for part in batch.parts(self._TOGETHER):
            gradients = [self._gradients(example) for example in part.parts(1)]
            for total, each in zip(self._sums.values(), zip(*gradients, strict=True), strict=True):
                flat = torch.stack([gradient.flatten() for gradient in each]).double()
                missing = len(total) * total.shape[1] - flat.shape[1]
                rows = F.pad(flat, (0, missing)).view(len(flat), -1, total.shape[1]).movedim(0, 1)
                total.baddbmm_(rows.mT, rows)
            self._examples += len(part)

    def _gradients(self, example: Batch) -> list[Tensor]:
        """Of the sum of an example's terms, by the weights."""
        task, (args, kwargs) = self._subject.task, arguments(example.inputs)
        with torch.enable_grad():
            outputs = functional_call(self._subject.model, self._weights, args, kwargs)
            terms = task.terms(outputs, example.targets)
            if not terms:
                return [torch.zeros_like(weight) for weight in self._weights.values()]
            loss = task.loss(outputs, example.targets) * terms
        self._terms += terms
        return list(torch.autograd.grad(loss, list(self._weights.values()), materialize_grads=True))

    def finish(self) -> dict[str, Tensor]:
        device = next(iter(self._sums.values())).device
        terms = torch.tensor(self._terms, dtype=torch.float64, device=device)
        per_example = means_over_processes({"": terms}, self._examples)[""]
        found = means_over_processes(self._sums, self._examples)
        found = {name: total / per_example.square() for name, total in found.items()}
        for name, total in found.items():
            if not bool(total.isfinite().all()):
                raise DataError(f"the gradients of the loss by {name} are not finite on the calibration data")
        return found
