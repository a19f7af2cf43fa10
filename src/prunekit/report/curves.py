"""Curves: a quality against sparsity, compression or speed-up, one line per method, named where it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from prunekit.report.axes import (
    LOSS,
    RATIO,
    SPARSITY,
    SPEEDUP,
    Across,
    Measured,
    format_point,
    linear_limits,
    log_limits,
    quality_of,
)
from prunekit.report.format import Primary
from prunekit.report.points import Curve, Point, curves_of, dense_of, even, removes_nothing
from prunekit.report.style import (
    DENSE_LOOK,
    Drawing,
    Look,
    clean,
    drawing_style,
    new_figure,
    set_log_y,
    set_ratio_x,
    spread_out,
)

#: Longer names are cut: the tables have them in full.
LONGEST = 34
#: A line that ends further from the right edge than this (of the width) is named without a leader, which
#: would cross the picture like one more curve.
NEAR = 0.15
#: Height of a line of text, in inches.
LINE = 0.19


#: With more methods than this, shaded bands cover each other: error bars are drawn instead.
MOST_BANDS = 4


@dataclass(frozen=True, slots=True)
class End:
    """The end of a line to be named: data coordinates; ``x`` is None for a line over the whole width.

    ``leaves`` is where a line that ends outside the frame leaves it; ``series`` is negative for dense.
    """

    series: int
    text: str
    look: Look
    x: float | None
    y: float
    leaves: float


def short(name: str) -> str:
    """The name, cut to LONGEST characters."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def new_labelled(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure and axes that leave room at the right for these names, and for that of dense."""
    figure = new_figure(10.0, max(4.6, 1.3 + 0.2 * (len(names) + 1)))
    right = 1 - (0.55 + 0.073 * max(16, *(len(short(name)) for name in names))) / 10.0
    axes = figure.add_axes((0.062, 0.108, right - 0.062, 0.872))
    clean(axes)
    return figure, axes


def set_labels(figure: Figure, axes: Axes, ends: Sequence[End]) -> None:
    """Write the names at the right of the axes, moved apart where they would touch, each with a swatch."""
    height = figure.get_figheight() * axes.get_position().height
    inch = 1 / (figure.get_figwidth() * axes.get_position().width)
    wanted = [_height(axes, end) for end in ends]
    for end, want, y in zip(ends, wanted, spread_out(wanted, LINE / height, 0.01, 0.99), strict=True):
        gid = None if end.series < 0 else f"series-{end.series}-label"
        start = 1.0 if end.x is None else _in_axes(axes, end.x, end.y)[0]
        moved = abs(want - y) > 0.2 * LINE / height
        inside = axes.get_ylim()[0] <= end.y <= axes.get_ylim()[1]
        if inside and start > 1 - NEAR and (moved or end.x is not None):
            leader = _added_line(
                axes, end.look, gid, [start + 0.06 * inch, max(start, 1) + 0.02 * inch, 1 + 0.12 * inch]
            )
            leader.set(ydata=[want, want, y], linewidth=0.7, alpha=0.45, linestyle="-")
        swatch = _added_line(axes, end.look, gid, [1 + 0.14 * inch, 1 + 0.27 * inch, 1 + 0.40 * inch])
        swatch.set(ydata=[y, y, y], marker=end.look.marker or "None", markersize=4.5, markevery=[1])
        place = (1 + 0.46 * inch, y)
        axes.text(
            *place, short(end.text), transform=axes.transAxes, va="center_baseline", fontsize=8.5, gid=gid
        )


def _in_axes(axes: Axes, x: float, y: float) -> tuple[float, float]:
    found = (axes.transData + axes.transAxes.inverted()).transform((x, y))
    return float(found[0]), float(found[1])


def _height(axes: Axes, end: End) -> float:
    """Where the name would like to be, in axes coordinates."""
    low, high = axes.get_ylim()
    if low <= end.y <= high:
        return _in_axes(axes, axes.get_xlim()[0], end.y)[1]
    # The further a line gets before it leaves, the nearer its name is to the middle.
    place = 0.001 * _in_axes(axes, end.leaves, low)[0]
    return place if end.y < low else 1 - place


def _added_line(axes: Axes, look: Look, gid: str | None, x: list[float]) -> Line2D:
    line = Line2D(
        x,
        [0.0] * len(x),
        transform=axes.transAxes,
        color=look.color,
        linestyle=look.dash,
        linewidth=look.width,
        clip_on=False,
        gid=gid,
    )
    axes.add_artist(line)
    return line


@dataclass(frozen=True, slots=True)
class PlotData:
    """What the plots are drawn from: points, the order and look of methods, the label of random."""

    points: tuple[Point, ...]
    methods: tuple[str, ...]
    looks: Mapping[str, Look]
    random: str | None

    @property
    def dense(self) -> Point:
        """The dense point."""
        return dense_of(self.points)

    def look(self, method: str) -> Look:
        """The look of a method, dense among them."""
        return self.looks.get(method, DENSE_LOOK)

    def series(self, method: str) -> int:
        """The number of a method in the figures, -1 for dense."""
        return self.methods.index(method) if method in self.methods else -1


@dataclass(frozen=True, slots=True)
class _Placed:
    point: Point
    x: float
    y: float
    sd: float | None


def curve_drawings(data: PlotData, primary: Primary) -> list[Drawing]:
    """Every curve that the study's numbers allow, in the order of the page."""
    plain, log = quality_of(primary)
    pairs = [
        (plain, RATIO),
        (log, RATIO),
        (plain, SPARSITY),
        (plain, SPEEDUP),
        (LOSS, RATIO),
        (LOSS, SPARSITY),
    ]
    found = (curve_drawing(data, measured, across) for measured, across in pairs)
    return [drawing for drawing in found if drawing is not None]


def curve_drawing(data: PlotData, measured: Measured, across: Across) -> Drawing | None:
    """One figure: mean lines with markers, the spread over seeds as bands or bars, labels at the right.

    None where the study has nothing to show in it: no value of that column, or no pruned point.
    """
    base = measured.of(data.dense)
    flat = [m for m in data.methods if removes_nothing(data.points, m)]
    placed = {
        method: [
            found
            for curve in curves_of(data.points, method)
            if (found := _place(curve, data, measured, across))
        ]
        for method in data.methods
        if method not in flat
    }
    if base is None or not any(placed.values()):
        return None
    with drawing_style():
        return _draw(data, measured, across, base, placed, flat)


def _place(curve: Curve, data: PlotData, measured: Measured, across: Across) -> list[_Placed]:
    found = []
    for point in curve.points:
        x, y = across.of(point, data.dense), measured.of(point)
        if x is not None and y is not None and not (measured.log and y[0] <= 0):
            found.append(_Placed(point, x, *y))
    return found


def _draw(
    data: PlotData,
    measured: Measured,
    across: Across,
    base: tuple[float, float | None],
    placed: Mapping[str, Sequence[Sequence[_Placed]]],
    flat: Sequence[str],
) -> Drawing:
    figure, axes = new_labelled(data.methods)
    everything = [item for curves in placed.values() for curve in curves for item in curve]
    _limits(axes, measured, across, base, everything, data.random)
    low, high = axes.get_ylim()

    ends = [_level(axes, "dense", -1, DENSE_LOOK, base, band=True)]
    for method in flat:
        value = measured.of([p for p in data.points if p.method == method][-1])
        if value is not None and low < value[0] < high:
            ends.append(
                _level(axes, method, data.methods.index(method), data.looks[method], value, band=False)
            )
    tips: dict[str, str] = {}
    outside = 0
    bands = sum(bool(curves) and method != data.random for method, curves in placed.items()) <= MOST_BANDS
    for method, curves in placed.items():
        series, look = data.methods.index(method), data.looks[method]
        markers = 0
        for curve in curves:
            outside += _line(axes, curve, series, look, bands and len(curve) > 1)
            for item in even(curve):
                tips[f"point-{series}-{markers}"] = _tip(item, measured)
                _marker(axes, item, f"point-{series}-{markers}", look)
                markers += 1
        if curves:
            longest_curve = max(curves, key=lambda curve: curve[-1].x)
            last = longest_curve[-1]
            # Lines that leave the frame are named in the order in which they leave, not by last values.
            leaves = next((item.x for item in longest_curve if not low <= item.y <= high), last.x)
            ends.append(End(series, method, look, last.x, last.y, leaves))
    set_labels(figure, axes, ends)
    axes.set_xlabel(across.label)
    axes.set_ylabel(measured.label)
    if outside:
        # Under the names, where no curve can run through it.
        place = (1 + 0.14 / (10.0 * axes.get_position().width), -0.086)
        text = f"{'▽' if measured.higher_is_better else '△'} beyond the axis"
        axes.text(*place, text, transform=axes.transAxes, fontsize=8, color="#555b66")
    first = measured is not LOSS and across is not SPEEDUP
    scale = ", log scale" if measured.log else ""
    title = f"{measured.label.split(' (')[0].capitalize()} against {across.words}{scale}"
    return Drawing(
        f"{measured.key}-{across.key}",
        title,
        _caption(measured, outside, _zeros(data, measured)),
        figure,
        tips,
        first,
    )


def _limits(
    axes: Axes,
    measured: Measured,
    across: Across,
    base: tuple[float, float | None],
    everything: Sequence[_Placed],
    random: str | None,
) -> None:
    if across.log:
        set_ratio_x(axes, max(2.0, *(item.x for item in everything), 2.0))
    else:
        axes.set_xlim(min(item.x for item in everything) - 3, 101.5)
        axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 2.5, 5, 10]))
    if measured.log:
        set_log_y(axes, *log_limits([base[0], *(item.y for item in everything)]))
        return
    # The random control may fall as far as it likes: it does not set the scale, unless it is alone.
    shown = [item for item in everything if item.point.method != random] or everything
    values = [(item.y, item.sd or 0.0) for item in shown]
    low, high = linear_limits((base[0], base[1] or 0.0), values, measured.higher_is_better, measured.percent)
    axes.set_ylim(max(low, 0.0), min(high, 100.0 + 0.01 * (high - low)) if measured.percent else high)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))


def _level(
    axes: Axes, name: str, series: int, look: Look, value: tuple[float, float | None], band: bool
) -> End:
    """A horizontal line for a network from which nothing was removed."""
    mean, sd = value
    if band and sd:
        axes.axhspan(mean - sd, mean + sd, color=look.color, alpha=0.08, linewidth=0)
    gid = None if series < 0 else f"series-{series}-level"
    axes.axhline(mean, color=look.color, linestyle=look.dash, linewidth=look.width, gid=gid)
    return End(series, name, look, None, mean, 0.0)


def _line(axes: Axes, curve: Sequence[_Placed], series: int, look: Look, band: bool) -> int:
    """Line and spread of one curve; the number of its points outside the limits."""
    x = np.array([item.x for item in curve])
    y = np.array([item.y for item in curve])
    sd = np.array([item.sd or 0.0 for item in curve])
    low, high = axes.get_ylim()
    floor = y - sd if axes.get_yscale() == "linear" else np.maximum(y - sd, low * 0.5)
    some = even(range(len(curve)))
    axes.plot(x, y, color=look.color, linestyle=look.dash, linewidth=look.width, gid=f"series-{series}-line")
    if band:
        axes.fill_between(
            x, floor, y + sd, color=look.color, alpha=0.13, linewidth=0, gid=f"series-{series}-band"
        )
    else:
        bars = (x[some], floor[some], (y + sd)[some])
        axes.vlines(*bars, color=look.color, linewidth=1.0, alpha=0.7, gid=f"series-{series}-bars")
    return int(np.sum((y < low) | (y > high)))


def _marker(axes: Axes, item: _Placed, gid: str, look: Look) -> None:
    """One marker, an artist of its own, so that it can carry its own tooltip."""
    low, high = axes.get_ylim()
    if low <= item.y <= high:
        crossed = look.marker == "x"  # has no face: its edge is all of it
        axes.plot(
            *([item.x], [item.y]),
            linestyle="",
            color=look.color,
            marker=look.marker,
            markersize=5.0,
            markeredgecolor=look.color if crossed else "white",
            markeredgewidth=1.3 if crossed else 0.6,
            gid=gid,
            zorder=3,
        )
        return
    edge, marker = (0.016, "v") if item.y < low else (0.984, "^")
    axes.plot(
        *([item.x], [edge]),
        transform=axes.get_xaxis_transform(),
        linestyle="",
        marker=marker,
        markersize=5.0,
        markerfacecolor="white",
        markeredgecolor=look.color,
        gid=gid,
        zorder=3,
    )


def _tip(item: _Placed, measured: Measured) -> str:
    unit = measured.label.split(" (")[0]
    seeds = "1 seed" if item.point.seeds == 1 else f"{item.point.seeds} seeds"
    return (
        f"{item.point.method}\n{format_point(item.point)}\n{unit} {measured.show(item.y, item.sd)} ({seeds})"
    )


def _zeros(data: PlotData, measured: Measured) -> int:
    """The points that a logarithmic axis cannot show, since their value is zero."""
    values = [measured.of(point) for point in data.points if point.sparsity > 0]
    return sum(value is not None and value[0] <= 0 for value in values) if measured.log else 0


def _caption(measured: Measured, outside: int, zeros: int) -> str:
    if measured.log:
        scale = "On this scale equal distances are equal factors"
        if zeros:
            points = "one point" if zeros == 1 else f"{zeros} points"
            return f"{scale}; {points} with a value of zero cannot stand on it."
        return f"{scale}, and nothing is cut off."
    if outside:
        points = "one point lies" if outside == 1 else f"{outside} points lie"
        return f"Cut so that differences near dense can be read: {points} beyond the axis (hollow markers)."
    return ""
