"""What a candidate maximises: how well its value goes along with the errors that are left."""

from __future__ import annotations

from torch import Tensor

from prunekit.errors import InputError


def correlation(values: Tensor, errors: Tensor) -> Tensor:
    """S = sum_o |sum_p (V_p - mean V)(E_p,o - mean E_o)| of each candidate (Fahlman & Lebiere 1990).

    The paper calls it a correlation; it is a covariance, summed over the examples and not divided by the
    spreads, so that a candidate that varies more is worth more.

    Args:
        values: (N, candidates), V.
        errors: (N, outputs), E, the outputs minus the targets; its sign does not matter.

    Returns:
        (candidates,), differentiable.

    Raises:
        InputError: if one is not a matrix, or their numbers of examples differ.
    """
    if values.ndim != 2 or errors.ndim != 2 or len(values) != len(errors):
        raise InputError(
            "values must be (N, candidates) and errors (N, outputs), "
            f"not {tuple(values.shape)} and {tuple(errors.shape)}"
        )
    return ((values - values.mean(0)).T @ (errors - errors.mean(0))).abs().sum(1)
