"""The elimination itself: pivoted Cholesky downdating of the inverse, many rows at once, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunekit.second_order.lots import aligned

PANEL = 64
"""Removals whose downdates are kept aside before they are applied to the whole inverse together."""

CACHE_BYTES = 8 * 2**20
"""Size of the inverses of the rows that are brought up to date together."""

BEHIND = 2**23
"""Added to the numbers of columns that are not chosen; float32 still holds the sum exactly."""

FAR = 1e30
"""The diagonal of places that are no candidates: so great that no downdate makes it negative."""


class Course:
    """Some rows in the middle of their elimination.

    Removing q from a row takes h h^T / h_q from its inverse A, with h = A e_q, and (w_q / h_q) h from its
    weights. With v = h / sqrt(h_q) this is a step of a Cholesky factorisation of A whose pivot is the weight
    with the least w^2 / A_qq. As in LAPACK's `pstrf` the vectors v of a panel are kept aside: a column of A
    is brought up to date when it is asked for, the diagonal and the weights at once, and the rest of A by one
    matrix product per panel, when the candidates that are left have been moved together in front.

    A step is bound by memory, so the arrays that it runs over are few and small: the weights, the diagonal,
    the numbers of the columns, and the vectors of the panel.

    Attributes:
        lowest: (rows, 1) the least pivot so far. Hessians come with ones on the diagonal, so that a pivot is
            never below 1 but for rounding.
    """

    def __init__(
        self,
        inverses: Tensor,
        weights: Tensor,
        columns: Tensor,
        candidates: Tensor,
        groups: Tensor | None = None,
        spare: Tensor | None = None,
        *,
        panel: int = PANEL,
    ):
        """Begin; `inverses` and `weights` are overwritten.

        Args:
            inverses: (rows, n, `aligned(n)`) contiguous, of which the first n columns count: the inverse of
                each row's Hessian, scaled to ones on the diagonal.
            weights: (rows, n), scaled likewise.
            columns: (rows, n) integers: what each place of the inverse is called.
            candidates: (rows, n) booleans: False for places that are not to be removed.
            groups: (names,) the group of each column by name, if removals per group are limited.
            spare: (rows, groups) integers: how many more may go from each group; changed by the removals.
            panel: removals between two downdates of the whole inverse.
        """
        rows, width = weights.shape
        self._inverses = inverses
        self._panel = panel
        self._vectors = weights.new_empty(rows * panel * aligned(width))
        self._weights = weights.masked_fill_(~candidates, torch.inf)
        self._diagonal = inverses[:, :, :width].diagonal(dim1=1, dim2=2).masked_fill(~candidates, FAR)
        self._columns = columns.to(weights.dtype)
        self._places = columns.new_zeros((rows, int(columns.max()) + 1 if columns.numel() else 1))
        self._groups, self._spare = groups, spare
        self._starts = (torch.arange(rows, device=weights.device) * inverses.shape[1])[:, None]
        self.lowest = weights.new_full((rows, 1), torch.inf)
        if groups is not None and spare is not None:
            self._lock(spare.gather(1, groups[columns]) <= 0)

    def removals(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Remove up to `count` weights of each row, yielding (columns, losses) of each round, both (rows, 1).

        The loss is infinite, and the column without meaning, for rows that have no candidate left.
        """
        while count > 0 and self._gather():
            rows, width = self._weights.shape
            steps = min(self._panel, count, width)
            long = aligned(width)
            vectors = self._vectors[: rows * steps * long].view(rows, steps, long)[:, :, :width]
            scores, column = torch.empty_like(self._weights), torch.empty_like(self._weights)
            for step in range(steps):
                yield self._remove(vectors, step, scores, column)
            count -= steps
            if count:
                self._downdate(vectors)

    def _remove(self, vectors: Tensor, step: int, scores: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        rows, width = scores.shape
        torch.mul(self._weights, self._weights, out=scores)
        scores.div_(self._diagonal)
        least = scores.amin(1, keepdim=True)
        # the lowest column among those with the least score: three passes, but faster than one argmin
        scores.ne_(least)
        torch.add(self._columns, scores, alpha=BEHIND, out=scores)
        chosen = scores.amin(1, keepdim=True).remainder_(BEHIND).long()
        place = self._places.gather(1, chosen)

        pivot = self._diagonal.gather(1, place)
        torch.minimum(self.lowest, pivot, out=self.lowest)
        scale = pivot.rsqrt()
        factor = self._weights.gather(1, place).mul_(scale)
        over = factor.isinf()
        scale.masked_fill_(over, 0.0)
        factor.masked_fill_(over, 0.0)

        # the column of the inverse is a row of it, which lies in one piece
        flat = self._inverses.flatten(0, 1)
        torch.index_select(flat[:, :width], 0, (self._starts + place).flatten(), out=column)
        if step:
            before = vectors[:, :step]
            coefficients = before.gather(2, place[:, None].expand(rows, step, 1)).view(rows, 1, step)
            column[:, None].baddbmm_(coefficients, before, alpha=-1)
        vector = vectors[:, step]
        torch.mul(column, scale, out=vector)
        self._diagonal.addcmul_(vector, vector, value=-1)
        self._weights.addcmul_(vector, factor, value=-1)
        self._diagonal.scatter_(1, place, FAR)
        self._weights.scatter_(1, place, torch.inf)
        if self._groups is not None and self._spare is not None:
            group = self._groups[chosen]
            left = self._spare.gather(1, group) - 1
            self._spare.scatter_(1, group, left)
            full = (left <= 0) & ~over
            self._lock((self._groups[self._columns.long()] == group) & full)
        return chosen, least / 2

    def _lock(self, places: Tensor) -> None:
        """Take places from the candidates. What goes on among the others does not depend on them."""
        self._weights.masked_fill_(places, torch.inf)
        self._diagonal.masked_fill_(places, FAR)

    def _gather(self) -> bool:
        """Note where the candidates are; whether there are any."""
        if not self._weights.numel() or not bool((self._weights != torch.inf).any()):
            return False
        rows, width = self._weights.shape
        here = torch.arange(width, device=self._weights.device).expand(rows, width)
        self._places.scatter_(1, self._columns.long(), here)
        return True

    def _downdate(self, vectors: Tensor) -> None:
        """Move the candidates that are left to the front places, and apply the panel to them."""
        rows, width = self._weights.shape
        left = self._weights != torch.inf
        wide = int(left.sum(1).max())
        tail = left[:, wide:]
        moves = int(tail.sum(1).max()) if wide < width else 0
        source = tail.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :moves] + wide
        hole = left[:, :wide].to(torch.uint8).argsort(dim=1, stable=True)[:, :moves]
        # rows with fewer moves than others move a place that is cut off onto itself
        target = torch.where(left.gather(1, source), hole, source)
        for each in (self._weights, self._diagonal, self._columns):
            each.scatter_(1, target, each.gather(1, source))
        self._weights = self._weights[:, :wide].contiguous()
        self._diagonal = self._diagonal[:, :wide].contiguous()
        self._columns = self._columns[:, :wide].contiguous()
        # a few rows from beginning to end, as long as their inverses are in the cache
        together = max(1, CACHE_BYTES // (width * self._inverses.stride(1) * self._inverses.itemsize))
        for start in range(0, rows, together):
            some = slice(start, start + together)
            if moves:
                _move(self._inverses[some], vectors[some], source[some], target[some], wide)
            inner = vectors[some, :, :wide]
            self._inverses[some, :wide, :wide].baddbmm_(inner.transpose(1, 2), inner, alpha=-1)


def _move(inverses: Tensor, vectors: Tensor, source: Tensor, target: Tensor, wide: int) -> None:
    """Rows and columns of the inverses, and the vectors' elements, from `source` to `target` (rows, moves).

    Of the inverses' columns the first `wide` rows are moved.
    """
    rows, steps, width = vectors.shape
    moves = source.shape[1]
    aim = target[:, None]
    vectors.scatter_(
        2, aim.expand(rows, steps, moves), vectors.gather(2, source[:, None].expand(-1, steps, -1))
    )
    starts = (torch.arange(rows, device=source.device) * inverses.shape[1])[:, None]
    flat = inverses.flatten(0, 1)[:, :width]
    moved = flat.index_select(0, (starts + source).flatten())
    flat.index_copy_(0, (starts + target).flatten(), moved)
    # by symmetry the columns are the rows, with the same moves within them
    moved = moved.view(rows, moves, width)
    across = moved.gather(2, source[:, None].expand(rows, moves, moves))
    moved.scatter_(2, aim.expand(rows, moves, moves), across)
    inverses[:, :wide].scatter_(2, aim.expand(rows, wide, moves), moved.transpose(1, 2)[:, :wide])
