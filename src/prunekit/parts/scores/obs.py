"""Optimal brain damage and optimal brain surgeon: the loss of the whole network, to second order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.errors import DataError
from prunekit.limits import LARGE
from prunekit.obs import damped, eliminate, removal_scores
from prunekit.parts.context import StepContext
from prunekit.parts.scores.base import RowScore, Scores
from prunekit.statistics import GaussNewton, GaussNewtonDiagonal
from prunekit.statistics.curvature import check_size
from prunekit.structure import Chain


class OBD(RowScore):
    """h w^2 / 2: what the loss rises by, to second order, when the weight alone is set to zero.

    h is the diagonal of the Hessian in its Gauss-Newton form, exact for each weight: the square of every
    example's derivatives, in all directions of the outputs. The paper goes back through the layers with
    squares instead, which leaves out how units of a layer act together.
    """

    name = "obd"
    paper = "LeCun, Denker, Solla 1990, NIPS 2"
    needs = (GaussNewtonDiagonal(),)

    def __call__(self, context: StepContext) -> Scores:
        """The saliencies, in float64."""
        diagonal = context.statistics[GaussNewtonDiagonal()]
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
    needs = (GaussNewton(),)
    damp: float = Field(default=1e-4, ge=0, le=LARGE)
    precision: Literal["float32", "float64"] = "float64"

    def check(self, model: nn.Module, chain: Chain | None, names: Sequence[str]) -> None:
        """The Hessian of all weights must fit.

        Raises:
            InputError: naming the number of weights.
            ModelError: naming a layer that is neither linear nor a convolution.
        """
        super().check(model, chain, names)
        if chain is None:
            check_size(model, names)

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
        matrix, live = damped(torch.cat(list(rows.values())), self.damp)
        weights = torch.cat(
            [torch.full((len(each),), name in names, device=matrix.device) for name, each in rows.items()]
        )
        across = matrix[weights][:, ~weights & live]
        lower, failed = torch.linalg.cholesky_ex(matrix[~weights & live][:, ~weights & live])
        if bool(failed):
            raise DataError("the Hessian by the biases is singular: give a damp > 0 (1e-4 is a good value)")
        return matrix[weights][:, weights] - across @ torch.cholesky_solve(across.T, lower)
