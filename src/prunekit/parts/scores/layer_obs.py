"""Layer-wise optimal brain surgeon: what a removal costs the layer once its row has made up for it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit.limits import LARGE
from prunekit.obs import eliminate, inverse_of, removal_scores, shared_saliency
from prunekit.parts.context import StepContext
from prunekit.parts.scores.base import RowScore, Scores
from prunekit.statistics import LayerHessian
from prunekit.statistics.hessians import damped_groups
from prunekit.structure.rows import from_rows, rows_of


class LayerOBS(RowScore):
    """When exact layer-wise OBS removes the weight: the loss of its removal, made increasing along its row.

    Each row of a layer loses one weight after the other, always the one whose removal costs the layer's own
    error E = 1/2 mean |change of W x|^2 least, and after **every** removal the other weights of the row make
    up for it. The order is the score; the repair `masked_least_squares` puts the survivors at any cut to the
    values that OBS would have led to. The bias is free: it makes up for removals, too. Weights that are zero
    already count as removed. With a pattern n:m the order is the best within it.

    Attributes:
        form: `exact`, or `shared`: the published saliency w^2 / (2 [H^-1]_qq), one inverse for all rows,
            which is right for one removal per row and to be renewed often (schedule `counts`).
        damp: added to the Hessian's diagonal, relative to its mean over the live inputs.
        relative_to: what the losses of a layer are divided by, which matters where layers compete: by the
            variance of its outputs, added up over them, a loss is a share of what the layer says.
        precision: of the elimination; sums and factorisations are in float64 in any case.
    """

    name = "layer_obs"
    paper = "Dong, Chen, Pan 2017, arXiv 1705.07565; exact: Frantar, Singh, Alistarh 2022, arXiv 2208.11580"
    needs = (LayerHessian(),)
    form: Literal["exact", "shared"] = "exact"
    damp: float = Field(default=0.01, ge=0, le=LARGE)
    relative_to: Literal["nothing", "output_variance"] = "output_variance"
    precision: Literal["float32", "float64"] = "float32"

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
            scores = [
                removal_scores(
                    eliminate(
                        matrix,
                        group,
                        on,
                        pattern=context.pattern,
                        spacing=width if context.pattern else 1,
                        dtype=getattr(torch, self.precision),
                    ),
                    variance,
                )
                for matrix, group, on in zip(matrices, rows, kept, strict=True)
            ]
        return from_rows(torch.stack(scores), layer)

    def _variance(self, rows: Tensor, hessians: Tensor) -> float:
        if self.relative_to == "nothing":
            return 1.0
        variance = float(((rows @ hessians) * rows).sum())
        return variance if variance > 0 else 1.0
