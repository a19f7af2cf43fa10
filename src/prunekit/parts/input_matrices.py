"""The damped second moments of a layer's inputs and their factor, worked out once for all who need them."""

from __future__ import annotations

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
