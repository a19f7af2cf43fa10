"""Pivoted Cholesky downdating of the inverse, many rows at once and block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from prunekit.obs.least_squares import factor, padded_blocks, padded_supports

VECTORS = 128
"""Vectors of a row's length that are reckoned for each row beside its inverse."""

_DOWNDATED = 8
"""Rows whose columns that are off are taken out together."""


class RowBatch(NamedTuple):
    """Rows that are worked on together.

    Attributes:
        rows: (b,) their numbers.
        places: (b, k) columns, all different in a row.
        valid: (b, k) booleans: which of them take part.
        inverses: (b, k, `aligned(k)`), of which the first k columns count: the inverse of the matrix on each
            row's columns that take part. The memory is that of the next batch, too.
    """

    rows: Tensor
    places: Tensor
    valid: Tensor
    inverses: Tensor


def aligned(width: int) -> int:
    """The next multiple of 16: matrix products run at half the speed on rows that start at odd addresses."""
    return -(-width // 16) * 16


def row_batches(matrix: Tensor, on: Tensor, dtype: torch.dtype, budget_bytes: int) -> Iterator[RowBatch]:
    """All rows that have a column, batch by batch.

    Args:
        matrix: (n, n) float64, positive definite on the columns that any row has on.
        on: (rows, n) booleans.
        dtype: of the inverses.
        budget_bytes: memory for a batch; one row always goes.

    Raises:
        DataError: if the matrix is singular.
    """
    columns = on.any(0).nonzero().flatten()
    matrix, on = matrix[columns][:, columns], on[:, columns]
    whole = (~on).sum(1) * 3 <= len(columns)
    space = torch.empty(0, dtype=dtype, device=matrix.device)
    for rows, places, valid, inverses in chain(
        _most_columns(matrix, on, whole, dtype, budget_bytes),
        _few_columns(matrix, on & ~whole[:, None], budget_bytes),
    ):
        count, width = places.shape
        size = count * width * aligned(width)
        if size > len(space):
            space = space.new_empty(size)  # once, for batches of about the same size: fresh memory is slow
        batch = RowBatch(rows, columns[places], valid, space[:size].view(count, width, aligned(width)))
        inverses(batch.inverses[:, :, :width])
        yield batch


_Part = tuple[Tensor, Tensor, Tensor, Callable[[Tensor], None]]
"""(rows, places, valid, what writes the inverses)."""


def _most_columns(
    matrix: Tensor, on: Tensor, whole: Tensor, dtype: torch.dtype, budget_bytes: int
) -> Iterator[_Part]:
    """Rows with most of the columns: the inverse for all columns is downdated for those that are off."""
    rows = whole.nonzero().flatten()
    if not on.shape[1] or not len(rows):
        return
    inverse = torch.cholesky_inverse(factor(matrix))
    width = len(inverse)
    bytes_per_row = dtype.itemsize * aligned(width) * (width + VECTORS)
    number = -(-len(rows) // max(1, budget_bytes // bytes_per_row))
    for some in rows[on[rows].sum(1).argsort(stable=True)].tensor_split(number):

        def write(inverses: Tensor, off: Tensor = ~on[some]) -> None:
            inverses[:] = inverse
            for places, part in zip(
                torch.split(off, _DOWNDATED), torch.split(inverses, _DOWNDATED), strict=True
            ):
                _take_out(part, inverse, places)

        yield some, torch.arange(width, device=on.device).expand(len(some), -1), on[some], write


def _take_out(inverses: Tensor, inverse: Tensor, off: Tensor) -> None:
    """Downdate (b, n, n), each the same inverse, for the places that are off in (b, n)."""
    for rows, places, valid in padded_supports(off, budget_bytes=off.numel() * len(inverse) * 8):
        across = inverse[places] * valid[:, :, None]
        half = torch.linalg.solve_triangular(
            factor(padded_blocks(inverse, places, valid)), across, upper=False
        )
        half = half.to(inverses.dtype)
        inverses[rows] = inverses[rows].baddbmm_(half.mT, half, alpha=-1)


def _few_columns(matrix: Tensor, on: Tensor, budget_bytes: int) -> Iterator[_Part]:
    """Rows that have lost many: the matrix on each row's columns is inverted."""
    # float64 blocks, their factors and inverses come with the inverses of the batch
    for rows, places, valid in padded_supports(on, budget_bytes // 4):
        blocks = padded_blocks(matrix, places, valid)

        def write(inverses: Tensor, blocks: Tensor = blocks) -> None:
            inverses[:] = torch.cholesky_inverse(factor(blocks))

        yield rows, places, valid, write


PANEL = 64
"""Removals whose downdates are kept aside before they are applied to the whole inverse together."""

TOGETHER_BYTES = 16 * 2**20
"""Size of the inverses of the rows that are brought up to date together, about that of a cache."""

BEHIND = 2**23
"""Added to the numbers of columns that are not chosen; float32 still holds the sum exactly."""

LARGE = 1e30
"""The diagonal of places that are no candidates: so great that no downdate makes it negative."""


class Removals(NamedTuple):
    """What each row lost.

    Attributes:
        columns: (rows, removals) int64; without meaning where the cost is infinite.
        costs: (rows, removals) w^2 / A_qq, infinite for rows that have no candidate left.
        pivots: (rows, removals) A_qq. Hessians come with ones on the diagonal, so that a pivot is never below
            1 but for rounding.
    """

    columns: Tensor
    costs: Tensor
    pivots: Tensor


class BlockedElimination:
    """Some rows in the middle of their elimination.

    Removing q from a row takes h h^T / h_q from its inverse A, with h = A e_q, and (w_q / h_q) h from its
    weights. With v = h / sqrt(h_q) this is a step of a Cholesky factorisation of A whose pivot is the weight
    with the least w^2 / A_qq. As in LAPACK's `pstrf` the vectors v of a panel are kept aside: a column of A
    is brought up to date when it is asked for, the diagonal and the weights at once, and the rest of A by one
    matrix product per panel, when the candidates that are left have been moved together in front.

    A step is bound by memory, so the arrays that it runs over are few and small: the weights, the diagonal,
    the numbers of the columns, and the vectors of the panel.

    The state is (2, rows, places): the diagonal of the inverse, and the weights.
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
        """Begin; `inverses` are overwritten.

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
        diagonal = inverses[:, :, :width].diagonal(dim1=1, dim2=2)
        self._state = torch.stack([diagonal, weights])
        self._columns = columns.to(weights.dtype)
        self._places = columns.new_zeros((rows, int(columns.max()) + 1))
        self._groups, self._spare = groups, spare
        self._starts = (torch.arange(rows, device=weights.device) * inverses.shape[1])[:, None]
        self._removed = weights.new_tensor([LARGE, torch.inf]).view(2, 1, 1).expand(2, rows, 1).contiguous()
        self._lock(~candidates)
        if groups is not None and spare is not None:
            self._lock(spare.gather(1, groups[columns]) <= 0)

    def removals(self, count: int) -> Removals:
        """Remove up to `count` weights of each row."""
        steps = [Removals(self._starts[:, :0], *(self._columns[:, :0] for _ in range(2)))]
        while count > 0 and self._note_places():
            rows, width = self._columns.shape
            panel = min(self._panel, count, width)
            long = aligned(width)
            vectors = self._vectors[: rows * panel * long].view(rows, panel, long)[:, :, :width]
            scores, column = torch.empty_like(self._columns), torch.empty_like(self._columns)
            steps += [self._remove(vectors, step, scores, column) for step in range(panel)]
            count -= panel
            if count:
                self._downdate(vectors)
        return Removals(*(torch.cat(each, 1) for each in zip(*steps, strict=True)))

    def _remove(self, vectors: Tensor, step: int, scores: Tensor, column: Tensor) -> Removals:
        rows, width = scores.shape
        diagonal, weights = self._state
        torch.mul(weights, weights, out=scores)
        scores.div_(diagonal)
        least = scores.amin(1, keepdim=True)
        # the lowest column among those with the least score: three passes, but faster than one argmin
        scores.ne_(least)
        torch.add(self._columns, scores, alpha=BEHIND, out=scores)
        chosen = scores.amin(1, keepdim=True).long().bitwise_and_(BEHIND - 1)
        place = self._places.gather(1, chosen)

        pivot, factor = both = self._state.gather(2, place.expand(2, rows, 1))
        scale = pivot.rsqrt()
        # rows without candidates have infinite weights
        factor = (factor * scale).nan_to_num_(nan=torch.nan, posinf=0.0, neginf=0.0)
        # the column of the inverse is a row of it, which lies in one piece
        flat = self._inverses.flatten(0, 1)[:, :width]
        torch.index_select(flat, 0, (self._starts + place).flatten(), out=column)
        if step:
            before = vectors[:, :step]
            coefficients = before.gather(2, place[:, None].expand(rows, step, 1)).view(rows, 1, step)
            column[:, None].baddbmm_(coefficients, before, alpha=-1)
        vector = vectors[:, step]
        torch.mul(column, scale, out=vector)
        diagonal.addcmul_(vector, vector, value=-1)
        weights.addcmul_(vector, factor, value=-1)
        self._state.scatter_(2, place.expand(2, rows, 1), self._removed)
        if self._groups is not None and self._spare is not None:
            group = self._groups[chosen]
            left = self._spare.gather(1, group) - 1
            self._spare.scatter_(1, group, left)
            full = (left <= 0) & (least < torch.inf)
            self._lock((self._groups[self._columns.long()] == group) & full)
        return Removals(chosen, least, both[0])

    def _lock(self, places: Tensor) -> None:
        """Take places from the candidates. What goes on among the others does not depend on them."""
        diagonal, weights = self._state
        diagonal.masked_fill_(places, LARGE)
        weights.masked_fill_(places, torch.inf)

    def _note_places(self) -> bool:
        """Note where the columns are; whether any is a candidate."""
        rows, width = self._columns.shape
        here = torch.arange(width, device=self._columns.device).expand(rows, width)
        self._places.scatter_(1, self._columns.long(), here)
        return bool((self._state[1] != torch.inf).any())

    def _downdate(self, vectors: Tensor) -> None:
        """Move the candidates that are left to the front places, and apply the panel to them."""
        rows, width = self._columns.shape
        left = self._state[1] != torch.inf
        wide = int(left.sum(1).max())
        tail = left[:, wide:]
        moves = int(tail.sum(1).max()) if wide < width else 0
        source = tail.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :moves] + wide
        hole = left[:, :wide].to(torch.uint8).argsort(dim=1, stable=True)[:, :moves]
        # rows with fewer moves than others move a place that is cut off onto itself
        target = torch.where(left.gather(1, source), hole, source)
        for each in (*self._state, self._columns):
            each.scatter_(1, target, each.gather(1, source))
        self._state = self._state[:, :, :wide].contiguous()
        self._columns = self._columns[:, :wide].contiguous()
        # a few rows from beginning to end: what is moved aside stays small and in the cache
        together = max(1, TOGETHER_BYTES // (width * self._inverses.stride(1) * self._inverses.itemsize))
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
