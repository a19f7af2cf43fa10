"""OBS with a rank-one downdate of the whole inverse after every removal, as one writes it down."""

from __future__ import annotations

import torch
from torch import Tensor


def one_row(inverse: Tensor, weights: Tensor) -> Tensor:
    """The order of removals from one row, (n,)."""
    inverse, w, order = inverse.clone(), weights.clone(), torch.empty(len(weights), dtype=torch.long)
    gone = torch.zeros(len(w), dtype=torch.bool)
    for step in range(len(w)):
        q = int((w.square() / inverse.diagonal()).masked_fill(gone, torch.inf).argmin())
        w -= w[q] / inverse[q, q] * inverse[:, q]
        inverse -= torch.outer(inverse[:, q], inverse[:, q]) / inverse[q, q]
        inverse[q, q] = 1  # so that no 0 / 0 comes up
        gone[q], w[q], order[step] = True, 0, q
    return order


def rows_together(inverse: Tensor, weights: Tensor) -> Tensor:
    """The same for several rows at a time, (rows, n), with one batched operation where there was one."""
    rows, n = weights.shape
    inverses, w, every = inverse.repeat(rows, 1, 1), weights.clone(), torch.arange(rows)
    order, gone = torch.empty((rows, n), dtype=torch.long), torch.zeros((rows, n), dtype=torch.bool)
    for step in range(n):
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        q = (w.square() / diagonal).masked_fill(gone, torch.inf).argmin(1)
        column, pivot = inverses[every, q], diagonal[every, q].clone().unsqueeze(1)
        w -= w[every, q].unsqueeze(1) / pivot * column
        inverses.baddbmm_(column.unsqueeze(2), (column / pivot).unsqueeze(1), alpha=-1)
        inverses[every, q, q] = 1
        gone[every, q], w[every, q], order[:, step] = True, 0, q
    return order
