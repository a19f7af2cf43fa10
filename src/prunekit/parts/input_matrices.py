"""What selections and repairs find from the second moments of a layer's inputs, once for all who need it."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.obs import damped_groups, inverse_factor
from prunekit.parts.context import StepContext
from prunekit.statistics import LayerHessian


def damped_inputs(context: StepContext, name: str, damp: float) -> list[Tensor]:
    """(columns, columns) float64 for each group of a layer, made fit for a factorisation.

    Args:
        context: of the step, with the statistic `LayerHessian`.
        name: of the layer's weight.
        damp: as of `prunekit.obs.damped`.

    Raises:
        DataError: naming the layer, if one of them is singular after damping.
    """
    hessians = context.statistics[LayerHessian()][name]
    # layers that are given the same tensors have one and the same statistic
    return context.once(("damped", id(hessians), damp), lambda: damped_groups(name, hessians, damp))


def factor_of(context: StepContext, matrix: Tensor) -> Tensor:
    """The `inverse_factor` of one of these matrices."""
    return context.once(("factor", id(matrix)), lambda: inverse_factor(matrix))


def leave_swept(context: StepContext, name: str, matrix: Tensor, weights: Tensor, mask: Tensor) -> None:
    """Leave to the repair the weights (rows, columns) of a layer's group, found together with their mask.

    Args:
        context: of the step.
        name: of the layer's weight.
        matrix: of the group, from `damped_inputs`: weights that were found with another damping are others.
        weights: what `left_to_right` has found.
        mask: of the same shape.
    """
    context.leave(("swept", name, id(matrix)), (weights, mask))


def swept_weights(context: StepContext, name: str, matrix: Tensor, mask: Tensor) -> Tensor | None:
    """The weights that a selection has left for this matrix and mask; None where it has left none."""
    left = context.take_left(("swept", name, id(matrix)))
    return left[0] if left is not None and torch.equal(left[1], mask) else None
