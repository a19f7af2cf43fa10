"""Curves: a quality against sparsity, compression or speed-up, one line per method, named where it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prunekit.report.charts import Chart, chart_curve, chart_level
from prunekit.report.points import (
    Point,
    Primary,
    Spread,
    curve_of,
    dense_of,
    even,
    format_number,
    methods_of,
    removes_nothing,
    times,
    with_spread,
)
from prunekit.report.style import (
    DENSE_LOOK,
    WIDTH,
    Drawing,
    End,
    Look,
    chart_axis,
    drawing_style,
    linear_limits,
    log_limits,
    looks_of,
    new_labelled,
    set_labels,
    set_log_y,
    set_ratio_x,
)
from prunekit.study_files import DENSE

#: With more methods than this, shaded bands cover each other: error bars are drawn instead.
MOST_BANDS = 4


@dataclass(frozen=True, slots=True)
class Across:
    """A horizontal axis; ``of(point, dense)`` is the place of a point, None where it has none."""

    key: Literal["sparsity", "ratio", "speedup", "file"]
    label: str
    words: str
    of: Callable[[Point, Point], float | None]

    @property
    def log(self) -> bool:
        """True for the ratios, which are read in factors."""
        return self.key != "sparsity"

    def show(self, x: float) -> str:
        """'10x', or '90.0%' where weights are removed."""
        return times(x) if self.log else f"{x:.1f}%"


@dataclass(frozen=True, slots=True)
class Measured:
    """A vertical axis: a column, its unit and how it is shown. ``complement`` shows 1 - value (an error)."""

    key: str
    column: str
    label: str
    log: bool
    higher_is_better: bool
    percent: bool = False
    complement: bool = False

    @property
    def name(self) -> str:
        """The label without its unit."""
        return self.label.split(" (")[0]

    def of(self, point: Point) -> Spread | None:
        """The value in the axis's unit; None if the column is empty or a run diverged."""
        spread = point.values.get(self.column)
        if spread is None or not spread.finite:
            return None
        factor = 100.0 if self.percent else 1.0
        mean = 1 - spread.mean if self.complement else spread.mean
        return Spread(factor * mean, None if spread.sd is None else factor * spread.sd)

    def show(self, value: Spread) -> str:
        """'97.21 ± 0.31%'."""
        if self.percent:
            return with_spread(value, lambda number: f"{number:.2f}", "%")
        return with_spread(value, format_number, "")


def _speedup(point: Point, dense: Point) -> float | None:
    there, here = dense.values.get("macs"), point.values.get("macs_nonzero")
    return there.mean / here.mean if there is not None and here is not None and here.mean > 0 else None


SPARSITY = Across(
    "sparsity", "removed of the original count (%)", "the share removed", lambda p, _: 100 * p.sparsity
)
RATIO = Across("ratio", "compression (original / kept)", "compression", lambda p, _: p.ratio)
SPEEDUP = Across(
    "speedup",
    "theoretical speed-up (MACs of dense / MACs with nonzero weights)",
    "theoretical speed-up",
    _speedup,
)


def _smaller_file(point: Point, dense: Point) -> float | None:
    there, here = dense.values.get("bytes"), point.values.get("packed_bytes")
    return there.mean / here.mean if there is not None and here is not None and here.mean > 0 else None


FILE = Across(
    "file",
    "compression of the file (parameters of dense / packed file, in bytes)",
    "the compression of the file",
    _smaller_file,
)

LOSS = Measured("loss", "test_loss", "test loss (log scale)", log=True, higher_is_better=False)


def quality_of(primary: Primary) -> tuple[Measured, Measured]:
    """The primary measure as such, and as an error on a logarithmic axis."""
    if primary.higher_is_better:
        return (
            Measured("accuracy", primary.test, "test accuracy (%)", False, True, percent=True),
            Measured(
                "error", primary.test, "test error (%, log scale)", True, False, percent=True, complement=True
            ),
        )
    return (
        Measured("mse", primary.test, "test mean squared error", False, False),
        Measured("mse-log", primary.test, "test mean squared error (log scale)", True, False),
    )


@dataclass(frozen=True)
class PlotData:
    """What the plots are drawn from: points, the label of random, and single methods' controls."""

    points: tuple[Point, ...]
    random: str | None
    control_of: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def methods(self) -> list[str]:
        """The methods in their order, without dense."""
        return methods_of(self.points)

    @cached_property
    def unpruned(self) -> list[str]:
        """The controls from which nothing was removed."""
        return [method for method in self.methods if removes_nothing(self.points, method)]

    @property
    def controls(self) -> set[str | None]:
        """The control that removes at random, and those of single methods."""
        return {self.random, *self.control_of}

    @cached_property
    def looks(self) -> Mapping[str, Look]:
        """The look of each method."""
        return looks_of(self.methods, self.random, self.unpruned, self.control_of)

    @property
    def dense(self) -> Point:
        """The dense point."""
        return dense_of(self.points)

    def look(self, method: str) -> Look:
        """The look of a method, dense among them."""
        return self.looks.get(method, DENSE_LOOK)


@dataclass(frozen=True, slots=True)
class Placed:
    """A point in a figure."""

    point: Point
    x: float
    y: Spread


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line for a network from which nothing was removed, for dense with its spread."""

    name: str
    look: Look
    value: Spread

    @property
    def banded(self) -> bool:
        """Whether its spread is drawn."""
        return self.name == DENSE


def curve_drawings(data: PlotData, primary: Primary) -> list[Drawing]:
    """Every curve that the study's numbers allow, in the order of the page."""
    plain, log = quality_of(primary)
    pairs = [
        (plain, RATIO),
        (log, RATIO),
        (log, FILE),
        (plain, SPARSITY),
        (plain, SPEEDUP),
        (LOSS, RATIO),
        (LOSS, SPARSITY),
    ]
    found = (curve_drawing(data, measured, across) for measured, across in pairs)
    return [drawing for drawing in found if drawing is not None]


@drawing_style()
def curve_drawing(data: PlotData, measured: Measured, across: Across) -> Drawing | None:
    """One figure: mean lines with markers, the spread over seeds as bands or bars, labels at the right.

    None where the study has nothing to show in it: no value of that column, or no pruned point.
    """
    dense = measured.of(data.dense)
    curves = {
        method: _place(data, method, measured, across)
        for method in data.methods
        if method not in data.unpruned
    }
    everything = [item for curve in curves.values() for item in curve]
    if not everything:
        return None
    figure, axes = new_labelled(data.methods)
    best = max if measured.higher_is_better else min
    base = dense or best((item.y for item in everything), key=lambda value: value.mean)
    _limits(axes, measured, across, base, everything, data.controls)
    low, high = axes.get_ylim()
    levels = [] if dense is None else [Level(DENSE, DENSE_LOOK, dense)]
    for method in data.unpruned:
        value = measured.of([p for p in data.points if p.method == method][-1])
        if value is not None and low < value.mean < high:
            levels.append(Level(method, data.look(method), value))
    tips = draw_lines(axes, data, curves, measured, levels)
    axes.set_xlabel(across.label)
    scale = ", log scale" if measured.log else ""
    return Drawing(
        f"{measured.key}-{across.key}",
        f"{measured.name.capitalize()} against {across.words}{scale}",
        _caption(measured, len(_beyond(axes, everything)), _zeros(data, measured)),
        figure,
        tips,
        charts=(chart_of(axes, data, curves, measured, levels, across.show),),
        first=measured is not LOSS and across is not SPEEDUP,
    )


def _place(data: PlotData, method: str, measured: Measured, across: Across) -> list[Placed]:
    found = []
    for point in curve_of(data.points, method):
        x, y = across.of(point, data.dense), measured.of(point)
        if x is not None and y is not None and not (measured.log and y.mean <= 0):
            found.append(Placed(point, x, y))
    return found


def draw_lines(
    axes: Axes,
    data: PlotData,
    curves: Mapping[str, Sequence[Placed]],
    measured: Measured,
    levels: Sequence[Level],
) -> dict[str, str]:
    """Draw the curves of methods within the limits, and what is level, and name them.

    Returns:
        The tooltips of the markers.
    """
    ends = [_level(axes, level) for level in levels]
    tips: dict[str, str] = {}
    bands = _has_bands(data, curves)
    for series, (method, curve) in enumerate(curves.items()):
        if not curve:
            continue
        look, last = data.look(method), curve[-1]
        _line(axes, curve, look, bands and len(curve) > 1)
        for number, item in enumerate(even(curve)):
            tips[f"point-{series}-{number}"] = _tip(item, measured)
            _marker(axes, item, f"point-{series}-{number}", look)
        # Lines that leave the frame are named in the order in which they leave, not by last values.
        leaves = (_beyond(axes, curve) or [last])[0].x
        ends.append(End(method, look, last.x, last.y.mean, leaves))
    set_labels(axes, ends)
    axes.set_ylabel(measured.label)
    if any(_beyond(axes, curve) for curve in curves.values()):
        # Under the names, where no curve can run through it.
        place = (1 + 0.14 / (WIDTH * axes.get_position().width), -0.086)
        text = f"{'▽' if measured.higher_is_better else '△'} beyond the axis"
        axes.text(*place, text, transform=axes.transAxes, fontsize=8, color="#555b66")
    return tips


def _has_bands(data: PlotData, curves: Mapping[str, Sequence[Placed]]) -> bool:
    return sum(bool(curve) and method not in data.controls for method, curve in curves.items()) <= MOST_BANDS


def chart_of(
    axes: Axes,
    data: PlotData,
    curves: Mapping[str, Sequence[Placed]],
    measured: Measured,
    levels: Sequence[Level],
    show: Callable[[float], str],
) -> Chart:
    """What is drawn on axes, for a page that draws it itself; ``show`` writes a place on the x axis."""
    return Chart(
        chart_axis(axes.xaxis, axes.get_xlabel(), "x" if axes.get_xscale() == "log" else ""),
        chart_axis(axes.yaxis, measured.label),
        tuple(
            chart_curve(
                method,
                data.look(method).on_page,
                [(item.point, item.x, item.y) for item in curve],
                values=[measured.show(item.y) for item in curve],
                places=[show(item.x) for item in curve],
            )
            for method, curve in curves.items()
            if curve
        ),
        tuple(
            chart_level(
                level.name,
                level.look.on_page,
                level.value if level.banded else replace(level.value, sd=None),
                measured.show(level.value),
            )
            for level in levels
        ),
        bands=_has_bands(data, curves),
    )


def _beyond(axes: Axes, curve: Sequence[Placed]) -> list[Placed]:
    """The points outside the limits."""
    low, high = axes.get_ylim()
    return [item for item in curve if not low <= item.y.mean <= high]


def _limits(
    axes: Axes,
    measured: Measured,
    across: Across,
    base: Spread,
    everything: Sequence[Placed],
    controls: set[str | None],
) -> None:
    if across.log:
        set_ratio_x(axes, max(2.0, *(item.x for item in everything), 2.0))
    else:
        axes.set_xlim(min(item.x for item in everything) - 3, 101.5)
        axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 2.5, 5, 10]))
    if measured.log:
        set_log_y(axes, *log_limits([base.mean, *(item.y.mean for item in everything)]))
        return
    # A random control may fall as far as it likes: it does not set the scale, unless it is alone.
    shown = [item for item in everything if item.point.method not in controls] or everything
    values = [(item.y.mean, item.y.sd or 0.0) for item in shown]
    dense = base.mean, base.sd or 0.0
    low, high = linear_limits(dense, values, measured.higher_is_better, measured.percent)
    axes.set_ylim(max(low, 0.0), min(high, 100.0 + 0.01 * (high - low)) if measured.percent else high)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))


def _level(axes: Axes, level: Level) -> End:
    look, value = level.look, level.value
    if level.banded and value.sd:
        axes.axhspan(value.mean - value.sd, value.mean + value.sd, color=look.color, alpha=0.08, linewidth=0)
    axes.axhline(value.mean, **look.line)
    return End(level.name, look, None, value.mean, 0.0)


def _line(axes: Axes, curve: Sequence[Placed], look: Look, band: bool) -> None:
    """Line and spread of one curve."""
    x = np.array([item.x for item in curve])
    y = np.array([item.y.mean for item in curve])
    sd = np.array([item.y.sd or 0.0 for item in curve])
    floor = y - sd if axes.get_yscale() == "linear" else np.maximum(y - sd, axes.get_ylim()[0] * 0.5)
    axes.plot(x, y, **look.line)
    if band:
        axes.fill_between(x, floor, y + sd, color=look.color, alpha=0.13, linewidth=0)
    else:
        some = even(range(len(curve)))
        bars = (x[some], floor[some], (y + sd)[some])
        axes.vlines(*bars, color=look.color, linewidth=1.0, alpha=0.7)


def _marker(axes: Axes, item: Placed, gid: str, look: Look) -> None:
    """One marker, an artist of its own, so that it can carry its own tooltip; a hollow one at the edge."""
    low, high = axes.get_ylim()
    common: dict[str, Any] = {"linestyle": "", "markersize": 5.0, "gid": gid, "zorder": 3}
    if low <= item.y.mean <= high:
        crossed = look.marker == "x"  # has no face: its edge is all of it
        axes.plot(
            *([item.x], [item.y.mean]),
            color=look.color,
            marker=look.marker,
            markeredgecolor=look.color if crossed else "white",
            markeredgewidth=1.3 if crossed else 0.6,
            **common,
        )
        return
    edge, marker = (0.016, "v") if item.y.mean < low else (0.984, "^")
    axes.plot(
        *([item.x], [edge]),
        transform=axes.get_xaxis_transform(),
        marker=marker,
        markerfacecolor="white",
        markeredgecolor=look.color,
        **common,
    )


def _tip(item: Placed, measured: Measured) -> str:
    point = item.point
    return (
        f"{point.method}\n{times(point.ratio)}, {100 * point.sparsity:.1f}% removed\n"
        f"{measured.name} {measured.show(item.y)} ({point.seeds_text})"
    )


def _zeros(data: PlotData, measured: Measured) -> int:
    """The points that a logarithmic axis cannot show, since their value is zero."""
    values = [measured.of(point) for point in data.points if point.sparsity > 0]
    return sum(value is not None and value.mean <= 0 for value in values) if measured.log else 0


def _caption(measured: Measured, outside: int, zeros: int) -> str:
    if measured.log:
        scale = "On this scale equal distances are equal factors"
        if zeros:
            points = "one point" if zeros == 1 else f"{zeros} points"
            return f"{scale}; {points} with a value of zero cannot stand on it."
        return f"{scale}, and nothing is cut off."
    if outside:
        points = "one point lies" if outside == 1 else f"{outside} points lie"
        return f"Cut so that small differences can be read: {points} beyond the axis (hollow markers)."
    return ""
