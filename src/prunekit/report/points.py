"""A study's numbers: mean and spread over seeds, the metric that methods are compared by, and their texts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from prunekit.report.read_tables import MEASURES, LayerRow, Row, Sizes
from prunekit.study_files import DENSE, StudyFile

Item = TypeVar("Item")
Key = TypeVar("Key")

#: A curve of more points shows the markers and the numbers of an even choice of them; its line has them all.
MOST_POINTS = 32

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation (None for a single value) over seeds."""

    mean: float
    sd: float | None

    @property
    def finite(self) -> bool:
        """False where a seed diverged: its nan or inf is in the mean, and is not hidden."""
        return math.isfinite(self.mean)

    def overlaps(self, other: Spread) -> bool | None:
        """Whether mean ± one standard deviation of both touch; None where a spread is unknown (one seed)."""
        if self.sd is None or other.sd is None:
            return None
        return abs(self.mean - other.mean) <= self.sd + other.sd


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

    @property
    def seeds_text(self) -> str:
        """'1 seed', '3 seeds'."""
        return "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """One layer at one step of one cell: shape and size of its weight, mean sparsity over the seeds.

    ``emptied`` are those of the ``seeds`` in which nothing of the layer is left.
    """

    method: str
    cell: str
    step: int
    layer: str
    shape: str
    parameters: int
    sparsity: float
    seeds: tuple[int, ...] = ()
    emptied: tuple[int, ...] = ()


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (divisor n - 1) of at least one value; nan and inf carry through."""
    if not all(math.isfinite(value) for value in values):
        return Spread(sum(values) / len(values), None)
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


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


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their keys, both in order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def points_of(rows: Iterable[Row]) -> list[Point]:
    """Join the rows of all seeds by (method, cell, step); in order of first appearance, steps ascending."""
    return [
        _point(sorted(found, key=lambda row: row.seed))
        for course in grouped(rows, lambda row: (row.method, row.cell)).values()
        for _, found in sorted(grouped(course, lambda row: row.step).items())
    ]


def methods_of(points: Iterable[Point]) -> list[str]:
    """The methods in order of first appearance, without ``dense``."""
    return [method for method in dict.fromkeys(point.method for point in points) if method != DENSE]


def dense_of(points: Iterable[Point]) -> Point:
    """The dense point; rows of ``dense`` at several steps or cells: the first."""
    return next(point for point in points if point.method == DENSE)


def under_way(study: StudyFile, points: Sequence[Point]) -> set[tuple[str, str, int]]:
    """Method, cell and step of what is no result: before the last step, where training goes on throughout."""
    last = {(p.method, p.cell): p.step for p in sorted(points, key=lambda point: point.step)}
    return {
        (p.method, p.cell, p.step)
        for p in points
        if p.step < last[p.method, p.cell] and study.trains_throughout(p.method)
    }


def judged(study: StudyFile, points: Sequence[Point]) -> list[Point]:
    """The points by which methods are judged, and the dense network that they are judged against.

    They are all but those `under_way`. Where the networks that methods are given are not trained, dense is
    the control that was trained as long, or, without one, has sizes and no quality.
    """
    passed = under_way(study, points)
    found = [point for point in points if (point.method, point.cell, point.step) not in passed]
    if not study.begins_untrained:
        return found
    control = study.controls.dense_trained_as_long
    dense = dense_of(found)
    columns = (*Sizes.model_fields, "kept")
    sizes = {column: value for column, value in dense.values.items() if column in columns}
    longer = [point for point in found if point.method == control]
    dense = replace(longer[-1], method=DENSE) if longer else replace(dense, values=sizes)
    return [dense, *(point for point in found if point.method not in (DENSE, control))]


def removes_nothing(points: Iterable[Point], method: str) -> bool:
    """True for a control that was only trained on: every point of it has sparsity 0."""
    return all(point.sparsity == 0 for point in points if point.method == method)


def curve_of(points: Sequence[Point], method: str) -> list[Point]:
    """The points that the line of a method joins.

    A single cell is a line through its steps. Several cells are a sweep: a line by sparsity through the
    steps at which they end, since what lies between is on the way to another end each.
    """
    cells = grouped((point for point in points if point.method == method), lambda point: point.cell)
    courses = [sorted(found, key=lambda p: p.step) for found in cells.values()]
    if len(courses) == 1:
        return courses[0]
    return sorted((course[-1] for course in courses), key=lambda p: (p.sparsity, p.cell))


def layer_points_of(rows: Iterable[LayerRow]) -> list[LayerPoint]:
    """Join the layer rows of all seeds by (method, cell, step, layer), in order of first appearance."""
    groups = grouped(rows, lambda row: (row.method, row.cell, row.step, row.layer))
    return [
        LayerPoint(
            *key,
            shape=found[0].shape,
            parameters=found[0].parameters,
            sparsity=statistics.fmean(row.sparsity for row in found),
            seeds=tuple(sorted(row.seed for row in found)),
            emptied=tuple(sorted(row.seed for row in found if row.kept == 0)),
        )
        for key, found in groups.items()
    ]


def layers_of(found: Sequence[LayerPoint]) -> tuple[LayerPoint, ...]:
    """The first point of each layer, in their order in the network."""
    layers: dict[str, LayerPoint] = {}
    for p in found:
        layers.setdefault(p.layer, p)
    return tuple(layers.values())


def even(items: Sequence[Item]) -> list[Item]:
    """All of a few; of more than MOST_POINTS an even choice, with the first and the last."""
    if len(items) <= MOST_POINTS:
        return list(items)
    last = len(items) - 1
    return [items[round(at * last / (MOST_POINTS - 1))] for at in range(MOST_POINTS)]


def fewer(points: Sequence[Point]) -> list[Point]:
    """Points in their order, of every cell with very many steps an even choice."""
    cells = grouped(points, lambda point: (point.method, point.cell))
    return [point for each in cells.values() for point in even(each)]


# ---- the metric, and numbers as a reader expects them --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Primary:
    """The metric by which methods are compared: chosen on ``validation``, reported on ``test``."""

    test: str
    validation: str
    name: str
    higher_is_better: bool

    def better(self, a: float, b: float) -> float:
        """By how much a is better than b, in the metric's own unit; negative where it is worse."""
        return a - b if self.higher_is_better else b - a

    def tolerance(self, dense: Spread) -> float:
        """What counts as no loss: 0.5 points of accuracy or 5% of the error, or one spread if more."""
        floor = 0.005 if self.higher_is_better else 0.05 * dense.mean
        return max(floor, dense.sd or 0.0)

    def holds(self, point: Point, dense: Point) -> bool:
        """Whether a point loses no more than the tolerance against dense, by the test means.

        Never where dense has no quality.
        """
        reference = dense.values.get(self.test)
        if reference is None:
            return False
        loss = self.better(reference.mean, point.values[self.test].mean)
        return loss <= self.tolerance(reference)

    def format_tolerance(self, dense: Spread) -> str:
        """The tolerance as text: '0.50 points', or '5.0%' of a squared error."""
        return self.gap(self.tolerance(dense), dense.mean)

    def show_spread(self, spread: Spread | None) -> str:
        """'97.21 ± 0.31%', or the mean alone where there is one seed; a dash for no value."""
        return (percent_spread if self.higher_is_better else plain_spread)(spread)

    def gap(self, value: float, reference: float) -> str:
        """A difference without its sign: points of accuracy, or percent of the reference error."""
        if self.higher_is_better:
            return f"{100 * abs(value):.2f} points"
        return f"{100 * abs(value / reference):.1f}%" if reference else format_number(abs(value))

    def change(self, value: float, reference: float) -> str:
        """The signed change from the reference to the value, as written: '+0.20', or '+3.1%' for an error."""
        difference = value - reference
        if self.higher_is_better:
            return signed(100 * difference, 2)
        return f"{signed(100 * difference / reference, 1)}%" if reference else signed(difference, 3)


ACCURACY = Primary("test_accuracy", "validation_accuracy", "test accuracy", True)
MSE = Primary("test_mse", "validation_mse", "test mean squared error", False)


def primary_of(column: Literal["test_accuracy", "test_mse"]) -> Primary:
    """The primary metric of a study by its column."""
    return ACCURACY if column == "test_accuracy" else MSE


def percent_spread(spread: Spread | None) -> str:
    """A fraction over seeds as percent, '97.21 ± 0.31%'; a dash for no value."""
    return with_spread(spread, lambda value: f"{100 * value:.2f}", "%")


def plain_spread(spread: Spread | None) -> str:
    """A loss over seeds, '0.0912 ± 0.0040'; a dash for no value."""
    return with_spread(spread, format_number, "")


def with_spread(spread: Spread | None, text: Callable[[float], str], unit: str) -> str:
    """A value with its spread, each written by ``text``; a dash for no value."""
    if spread is None:
        return "–"
    if not spread.finite:
        return "diverged"
    return text(spread.mean) + ("" if spread.sd is None else f" ± {text(spread.sd)}") + unit


def format_number(value: float) -> str:
    """Three significant digits, in plain digits where that stays short."""
    size = abs(value)
    if 1e3 <= size < 1e6:
        return f"{value:.0f}"
    return f"{value:#.3g}".removesuffix(".") if size == 0 or 1e-4 <= size < 1e3 else f"{value:.3g}"


def signed(value: float, digits: int) -> str:
    """A signed number with a real minus sign; what rounds to zero has no sign."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def times(ratio: float) -> str:
    """A compression ratio: '2x', '4.2x', '12x'."""
    text = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
    return text.removesuffix(".0") + "x"


def times_of(points: Iterable[Point]) -> str:
    """The compression ratios that points were run at: '10x', or the least and the largest, '7.8x to 10x'."""
    ratios = [point.ratio for point in points]
    return " to ".join(dict.fromkeys((times(min(ratios)), times(max(ratios)))))


def count(value: float | None) -> str:
    """A large number in short: '950', '12.3 k', '4.56 M'; a dash for none."""
    if value is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:  # 999 900 is 1 M, not 1000 k
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def names(items: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
