"""One score per weight from the order within its row, comparable across rows and layers."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.obs.elimination import Elimination
from prunekit.obs.refit import check_rows


def removal_scores(elimination: Elimination, variance: float = 1.0) -> Tensor:
    """What a removal costs, so that the lowest of all rows can go in the order that each row prescribes.

    Losses along a row are not monotone: a weight may become cheap because another one went. A row's score is
    therefore the running maximum of its losses. Where that stands still, each score is the next greater
    number after the one before it, so that any number of the lowest scores is a beginning of every row's
    order: no cut takes a weight whose predecessors stay.

    Args:
        elimination: of all rows of a layer.
        variance: what the losses are divided by: the layer's `output_variance`, when layers are compared.

    Returns:
        (rows, columns) float64, higher = keep: infinite for weights that are never removed, -1 for those
        that were gone before the elimination.

    Raises:
        InputError: if the variance is not a positive finite number.
    """
    if not 0 < variance < float("inf"):
        raise InputError(f"the output variance must be positive and finite, got {variance}")
    scores = torch.full_like(elimination.kept, -1.0, dtype=torch.float64)
    scores[elimination.kept] = torch.inf
    row, step = (elimination.order >= 0).nonzero(as_tuple=True)
    scores[row, elimination.order[row, step]] = _increasing(elimination.losses / variance)[row, step]
    return scores


def output_variance(matrix: Tensor, weights: Tensor) -> float:
    """The mean square of a layer's outputs, summed over them: w H w over its rows.

    With moments about the mean it is the variance. A layer's losses divided by it are fractions of what the
    layer says, by which layers can be compared; the mean over the outputs instead would make the rows of a
    narrow layer, the last above all, far too cheap.

    Args:
        matrix: (n, n), the layer's Hessian.
        weights: (rows, n), before anything is removed.
    """
    check_rows(matrix, weights)
    wide = weights.double()
    return float((wide @ matrix.double() * wide).sum())


def _increasing(losses: Tensor) -> Tensor:
    """The running maximum along the rows, made strictly increasing by the least possible steps."""
    # positive floating-point numbers are ordered as their bits are, so that +1 is the next number
    bits = losses.contiguous().view(torch.int64)
    steps = torch.arange(losses.shape[1], device=losses.device)
    return ((bits - steps).cummax(1).values + steps).view(torch.float64)
