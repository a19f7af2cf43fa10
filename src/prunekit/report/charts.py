"""Data of a page's interactive charts: axes, curves and levels as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunekit.report.points import MOST_POINTS, Point, Spread


@dataclass(frozen=True, slots=True)
class ChartAxis:
    """An axis: its limits, and its ticks with their texts."""

    label: str
    log: bool
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class ChartCurve:
    """A line through points that were run: by point its place, mean, spread (0 where unknown) and texts.

    ``values`` and ``places`` are what a reader is told of ``y`` and ``x``; ``sparsity`` is that of the whole
    network, by which a point is found again in other charts. Only a ``marked`` curve shows its points.
    """

    name: str
    look: Mapping[str, Any]
    x: tuple[float, ...]
    y: tuple[float, ...]
    sd: tuple[float, ...]
    sparsity: tuple[float, ...]
    values: tuple[str, ...]
    places: tuple[str, ...]
    marked: bool


@dataclass(frozen=True, slots=True)
class ChartLevel:
    """A horizontal line, for a network from which nothing was removed; ``sd`` is 0 where it has no band."""

    name: str
    look: Mapping[str, Any]
    y: float
    sd: float
    value: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One pair of axes with what is in it.

    Curves are those of methods, or, where there is a ``method``, those of its layers. ``bands`` says whether
    spreads are bands or bars, ``diagonal`` whether x = y is drawn.
    """

    x: ChartAxis
    y: ChartAxis
    curves: tuple[ChartCurve, ...]
    levels: tuple[ChartLevel, ...] = ()
    bands: bool = False
    method: str | None = None
    diagonal: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def chart_curve(
    name: str,
    look: Mapping[str, Any],
    points: Sequence[tuple[Point, float, Spread]],
    values: Sequence[str],
    places: Sequence[str],
) -> ChartCurve:
    """A curve through points, each with its place on the x axis and its value, in the order of the line."""
    return ChartCurve(
        name,
        look,
        x=tuple(_rounded(x) for _, x, _ in points),
        y=tuple(_rounded(y.mean) for _, _, y in points),
        sd=tuple(_rounded(y.sd or 0.0) for _, _, y in points),
        sparsity=tuple(_rounded(point.sparsity) for point, _, _ in points),
        values=tuple(values),
        places=tuple(places),
        marked=len(points) <= MOST_POINTS,
    )


def chart_level(name: str, look: Mapping[str, Any], value: Spread, text: str) -> ChartLevel:
    """A level at a mean, with its spread."""
    return ChartLevel(name, look, _rounded(value.mean), _rounded(value.sd or 0.0), text)


def _rounded(value: float) -> float:
    """Eight significant digits: more than any screen shows, in half of the bytes."""
    return float(f"{value:.8g}")
