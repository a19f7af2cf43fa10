"""Second moments of a layer, damped, with errors that name it."""

from __future__ import annotations

from torch import Tensor

from prunekit.errors import DataError
from prunekit.obs import damped


def damped_groups(name: str, hessians: Tensor, damp: float) -> list[Tensor]:
    """The Hessians (groups, columns, columns) of a weight, made fit for a factorisation, one by one.

    Raises:
        DataError: naming the layer, if one of them is singular after damping.
    """
    try:
        return [damped(hessian, damp)[0] for hessian in hessians]
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
