"""Exact OBS: in each row one weight after the other, always the one whose removal costs least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import DataError, InputError
from prunekit.obs.blocked_elimination import PANEL, BlockedElimination, row_batches
from prunekit.obs.least_squares import check_rows

BUDGET_BYTES = 256 * 2**20

MIN_PIVOT = 0.95
"""The least pivot that is trusted: with Hessians scaled to ones on the diagonal none is below 1."""


@dataclass(frozen=True)
class RowElimination:
    """In which order each row loses its weights, and what each removal costs.

    Attributes:
        order: (rows, removals) int64: columns in the order in which they go; -1 behind the last one of a row
            that loses fewer than others.
        losses: (rows, removals) float64: what each removal adds to the row's error E = (1/2) d^T H d, where d
            is how far the row's weights have moved from those that were given; infinite where there is none.
            They add up: the sum of the first k is E after k removals, the survivors at their best values.
        kept: (rows, columns) booleans: what is left after all these removals.
    """

    order: Tensor
    losses: Tensor
    kept: Tensor

    def after(self, count: int | Tensor) -> Tensor:
        """What each row keeps once `count` (one number, or one per row) of these removals are done."""
        counts = torch.as_tensor(count, device=self.order.device).expand(len(self.order))
        later = torch.arange(self.order.shape[1], device=self.order.device) >= counts[:, None]
        row, step = (later & (self.order >= 0)).nonzero(as_tuple=True)
        kept = self.kept.clone()
        kept[row, self.order[row, step]] = True
        return kept


def eliminate(
    matrix: Tensor,
    weights: Tensor,
    kept: Tensor | None = None,
    *,
    stop: int | None = None,
    pattern: tuple[int, int] | None = None,
    spacing: int = 1,
    dtype: torch.dtype = torch.float32,
    panel: int = PANEL,
    budget_bytes: int = BUDGET_BYTES,
) -> RowElimination:
    """Remove weights one by one in every row, each time the one with the least w_q^2 / (2 [H_SS^-1]_qq).

    After **every** removal the row's other weights S make up for it and their inverse is renewed: OBS
    (Hassibi and Stork 1993) on the layer's error (Dong, Chen and Pan 2017, arXiv 1705.07565), exact as in
    Frantar, Singh and Alistarh (2022, arXiv 2208.11580), by a blocked factorisation. A layer is
    (outputs, inputs) with the inputs' second moments; a whole network is one row with its own Hessian.

    Args:
        matrix: (n, n), from `damped`. Inputs that it leaves out go first, at no loss.
        weights: (rows, n).
        kept: (rows, n) booleans: False for weights that are gone already, whatever their value. The others
            are taken as they are, and the error counts from there.
        stop: how many weights a row loses at most; by default all.
        pattern: (n, m): of every m consecutive columns n stay.
        spacing: columns of one group of the pattern lie this far apart: the positions of a kernel, when the
            columns are (channels, positions) flattened and the pattern is over channels.
        dtype: of the arithmetic. Rows that lose their footing in float32 are done again in float64.
        panel: removals between two downdates of the whole inverse.
        budget_bytes: memory for the inverses of the rows that are worked on together; one row always goes.

    Returns:
        The removals of each row. Equal costs go by column, the lowest first.

    Raises:
        InputError: for shapes, a pattern or a number of removals that do not fit.
        DataError: if the matrix is singular or a weight not finite.
    """
    live = check_rows(matrix, weights, kept)
    if not bool(weights.isfinite().all()):
        raise DataError("weights to be removed are not finite")
    if stop is not None and stop < 0:
        raise InputError(f"stop must be >= 0, got {stop}")
    if dtype not in (torch.float32, torch.float64) or panel < 1:
        raise InputError(f"dtype must be float32 or float64 and panel >= 1, got {dtype} and {panel}")
    kept = torch.ones_like(weights, dtype=torch.bool) if kept is None else kept.clone()
    limit = weights.shape[1] if stop is None else min(stop, weights.shape[1])
    groups = None if pattern is None else _groups(weights.shape[1], pattern, spacing).to(weights.device)
    spare = None if pattern is None or groups is None else _spare(kept, groups, pattern[0])
    order = torch.full((len(weights), limit), -1, device=weights.device)
    losses = torch.full((len(weights), limit), torch.inf, dtype=torch.float64, device=weights.device)
    done = _remove_dead(order, losses, kept, ~live, groups, spare)

    size = matrix.double().diagonal().sqrt()
    unit = torch.where(live, 1 / size, 0.0)
    scaled = matrix.double() * unit.outer(unit)
    values = weights.double() * size
    scale = float(values.abs().max()) if values.numel() else 1.0
    values = values / (scale or 1.0)
    on = kept & live
    for rows, columns, costs in _eliminated(
        scaled, values, on, groups, spare, limit, panel, dtype, budget_bytes
    ):
        steps = done[rows, None] + torch.arange(columns.shape[1], device=columns.device)
        valid = (costs < torch.inf) & (steps < limit)
        row = rows[:, None].expand_as(columns)[valid]
        order[row, steps[valid]] = columns[valid]
        losses[row, steps[valid]] = costs[valid] * (scale**2 / 2)
        kept[row, columns[valid]] = False
    longest = int((order >= 0).sum(1).max()) if order.numel() else 0
    return RowElimination(order[:, :longest].clone(), losses[:, :longest].clone(), kept)


def _groups(columns: int, pattern: tuple[int, int], spacing: int) -> Tensor:
    """(columns,) the group of the pattern that each column belongs to."""
    n, m = pattern
    if not 1 <= n < m or spacing < 1:
        raise InputError(f"a pattern n:m needs 1 <= n < m and a spacing >= 1, got {n}:{m} and {spacing}")
    if columns % (m * spacing):
        raise InputError(f"{columns} columns do not divide into groups of {m} that lie {spacing} apart")
    column = torch.arange(columns)
    return column // (m * spacing) * spacing + column % spacing


def _spare(kept: Tensor, groups: Tensor, floor: int) -> Tensor:
    """(rows, groups) how many weights may still go from each group of a row."""
    spare = torch.full((len(kept), int(groups.max()) + 1 if len(groups) else 0), -floor, device=kept.device)
    return spare.index_add_(1, groups, kept.long())


def _remove_dead(
    order: Tensor, losses: Tensor, kept: Tensor, dead: Tensor, groups: Tensor | None, spare: Tensor | None
) -> Tensor:
    """Take out the weights of dead inputs, as far as allowed; (rows,) how many that are."""
    done = torch.zeros(len(order), dtype=torch.long, device=order.device)
    for column in dead.nonzero().flatten().tolist():
        goes = kept[:, column] & (done < order.shape[1])
        if groups is not None and spare is not None:
            goes &= spare[:, groups[column]] > 0
            spare[:, groups[column]] -= goes.long()
        order[goes, done[goes]] = column
        losses[goes, done[goes]] = 0.0
        kept[goes, column] = False
        done += goes
    return done


def _eliminated(
    matrix: Tensor,
    values: Tensor,
    on: Tensor,
    groups: Tensor | None,
    spare: Tensor | None,
    limit: int,
    panel: int,
    dtype: torch.dtype,
    budget_bytes: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows, columns, costs) of all rows with something on, (b,) and (b, removals); costs not halved."""
    again = torch.zeros(len(on), dtype=torch.bool, device=on.device)
    for batch in row_batches(matrix, on, dtype, budget_bytes):
        blocked = BlockedElimination(
            batch.inverses,
            values[batch.rows].gather(1, batch.places).to(dtype),
            batch.places,
            batch.valid,
            groups,
            None if spare is None else spare[batch.rows],
            panel=panel,
        )
        removed = blocked.removals(limit)
        sound = ((removed.pivots >= MIN_PIVOT) & ~removed.costs.isnan()).all(1)
        again[batch.rows[~sound]] = True
        yield batch.rows[sound], removed.columns[sound], removed.costs[sound].double()
    if bool(again.any()):
        if dtype == torch.float64:
            raise DataError("the Hessian is too close to singular for an elimination: give a greater damp")
        rest = on & again[:, None]
        yield from _eliminated(matrix, values, rest, groups, spare, limit, panel, torch.float64, budget_bytes)


def removal_scores(elimination: RowElimination, variance: float = 1.0) -> Tensor:
    """What a removal costs, so that the lowest of all rows can go in the order that each row prescribes.

    Losses along a row are not monotone: a weight may become cheap because another one went. A row's score is
    therefore the running maximum of its losses. Where that stands still, each score is the next greater
    number after the one before it, so that any number of the lowest scores is a beginning of every row's
    order: no cut takes a weight whose predecessors stay.

    Args:
        elimination: of all rows of a layer.
        variance: what the losses are divided by: the layer's `output_variance`, when layers are compared.

    Returns:
        (rows, columns) float64, higher = keep; infinite for weights that are never removed, -1 for those
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
