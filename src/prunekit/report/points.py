"""From rows to points and curves: the mean and the spread over seeds. Pure functions."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prunekit.report.read_tables import MEASURES, LayerRow, Row
from prunekit.study_files import DENSE

Item = TypeVar("Item")

#: A curve of more points shows the markers and the numbers of an even choice of them; its line has them all.
MOST_POINTS = 32


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, sample standard deviation (None for a single value) and count of values over seeds."""

    mean: float
    sd: float | None
    n: int

    @property
    def finite(self) -> bool:
        """False where a seed diverged: its nan or inf is in the mean, and is not hidden."""
        return math.isfinite(self.mean)


@dataclass(frozen=True, slots=True)
class Point:
    """One step of one cell, over its seeds.

    ``sparsity`` and ``ratio`` are means over the seeds, whose achieved values may differ a little.
    ``values`` has the columns of MEASURES that are filled, and ``kept``.
    """

    method: str
    cell: str
    step: int
    seeds: int
    sparsity: float
    ratio: float
    values: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points to be joined by a line, in order of their sparsity (a sweep) or their step (one cell)."""

    method: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """One layer at one step of one cell: mean sparsity over ``seeds`` seeds."""

    method: str
    cell: str
    step: int
    layer: str
    shape: str
    parameters: int
    sparsity: float
    seeds: int


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (divisor n - 1) of at least one value; nan and inf carry through."""
    if not all(math.isfinite(value) for value in values):
        return Spread(sum(values) / len(values), None, len(values))
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, len(values))


def _point(rows: Sequence[Row]) -> Point:
    filled = {
        column: [value for row in rows if (value := getattr(row, column)) is not None] for column in MEASURES
    }
    values = {column: spread_of(found) for column, found in filled.items() if found}
    values["kept"] = spread_of([float(row.kept) for row in rows])
    first = rows[0]
    return Point(
        method=first.method,
        cell=first.cell,
        step=first.step,
        seeds=len(rows),
        sparsity=statistics.fmean(row.sparsity for row in rows),
        ratio=statistics.fmean(row.compression_ratio for row in rows),
        values=values,
    )


def points_of(rows: Iterable[Row]) -> list[Point]:
    """Join the rows of all seeds by (method, cell, step); in order of first appearance, steps ascending."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.cell, row.step), []).append(row)
    first: dict[tuple[str, str], int] = {}
    for method, cell, _ in groups:
        first.setdefault((method, cell), len(first))
    order = sorted(groups, key=lambda key: (first[key[:2]], key[2]))
    return [_point(sorted(groups[key], key=lambda row: row.seed)) for key in order]


def methods_of(points: Iterable[Point]) -> list[str]:
    """The methods in order of first appearance, without ``dense``."""
    return [method for method in dict.fromkeys(point.method for point in points) if method != DENSE]


def dense_of(points: Iterable[Point]) -> Point:
    """The dense point; rows of ``dense`` at several steps or cells: the first."""
    return next(point for point in points if point.method == DENSE)


def removes_nothing(points: Iterable[Point], method: str) -> bool:
    """True for a control that was only trained on: every point of it has sparsity 0."""
    return all(point.sparsity == 0 for point in points if point.method == method)


def curves_of(points: Sequence[Point], method: str) -> list[Curve]:
    """The lines to draw for a method.

    A single cell is a line through its steps. Several cells are a sweep: one line by sparsity through the
    steps at which they end, since what lies between is on the way to another end each.
    """
    cells: dict[str, list[Point]] = {}
    for point in points:
        if point.method == method:
            cells.setdefault(point.cell, []).append(point)
    courses = [tuple(sorted(found, key=lambda p: p.step)) for found in cells.values()]
    if len(courses) > 1:
        courses = [tuple(sorted((course[-1] for course in courses), key=lambda p: (p.sparsity, p.cell)))]
    return [Curve(method, course) for course in courses]


def layer_points_of(rows: Iterable[LayerRow]) -> list[LayerPoint]:
    """Join the layer rows of all seeds by (method, cell, step, layer), in order of first appearance."""
    groups: dict[tuple[str, str, int, str], list[LayerRow]] = {}
    for row in rows:
        groups.setdefault((row.method, row.cell, row.step, row.layer), []).append(row)
    return [
        LayerPoint(
            *key,
            shape=found[0].shape,
            parameters=found[0].parameters,
            sparsity=statistics.fmean(row.sparsity for row in found),
            seeds=len(found),
        )
        for key, found in groups.items()
    ]


def even(items: Sequence[Item]) -> list[Item]:
    """All of a few; of more than MOST_POINTS an even choice, with the first and the last."""
    if len(items) <= MOST_POINTS:
        return list(items)
    last = len(items) - 1
    return [items[round(at * last / (MOST_POINTS - 1))] for at in range(MOST_POINTS)]


def fewer(points: Sequence[Point]) -> list[Point]:
    """Points in their order, of every cell with very many steps an even choice."""
    cells: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        cells.setdefault((point.method, point.cell), []).append(point)
    return [point for each in cells.values() for point in even(each)]
