"""Look and files of plots: palette, limits, ticks, names beside lines, SVG and PNG with the same bytes."""

import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from prunekit.errors import DataError
from prunekit.files import replacing
from prunekit.report.charts import Chart, ChartAxis
from prunekit.report.theme import EDGE, GREY, INK, PALE, for_both_themes, of_page, themed

# Okabe and Ito's palette, safe for the common kinds of colour blindness; without its yellow, which is too
# pale for a line on white, and without black, which is dense.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1)), (0, (7, 2)))
#: From first to last; of more shades a colour bar would be a picture inside of its SVG.
DEPTH = matplotlib.colormaps["viridis"]
DEPTH_OF_BAR = DEPTH.resampled(48)
#: Settings for drawing and saving. DejaVu Sans comes with matplotlib, so that measures are the same
#: everywhere; the salt and the missing date make the same numbers give the same bytes.
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prunekit",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.parse_math": False,  # a method may be called a$b$
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": EDGE,
    "axes.linewidth": 0.8,
}


PNG_DPI = 160

#: Width in inches of a figure that fills the page; letters of others are as large.
WIDTH = 10.0

#: Longer names are cut: the tables have them in full.
LONGEST = 34
#: A line that ends further from the right edge than this (of the width) is named without a leader, which
#: would cross the picture like one more curve.
NEAR = 0.15
#: Height of a line of text, in inches.
LINE = 0.19


@contextmanager
def drawing_style() -> Iterator[None]:
    """The settings of RC for the time of drawing or saving; the caller's own come back afterwards.

    matplotlib reads a `matplotlibrc` of the current folder, which could have LaTeX run: its defaults hold.
    """
    defaults: dict[Any, Any] = {
        key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"
    }
    with matplotlib.rc_context({**defaults, **RC}):
        yield


@dataclass(frozen=True, slots=True)
class Look:
    """Colour, marker and dash of one method, the same in every figure and table."""

    color: str
    marker: str
    dash: Any
    width: float = 1.7

    @property
    def line(self) -> dict[str, Any]:
        """What matplotlib draws a line of this look with."""
        return {"color": self.color, "linestyle": self.dash, "linewidth": self.width}

    @property
    def on_page(self) -> dict[str, Any]:
        """The look within HTML: a CSS colour, which follows the theme; the dash in pixels, [] for none."""
        dash = [] if self.dash == "-" else [round(1.6 * part, 3) for part in self.dash[1]]
        return {"color": of_page(self.color), "marker": self.marker, "dash": dash, "width": self.width}

    @property
    def dasharray(self) -> str:
        """The dash for SVG's stroke-dasharray, 'none' for a full line."""
        return " ".join(f"{part:g}" for part in self.on_page["dash"]) or "none"


DENSE_LOOK = Look(INK, "", "-", 1.3)
OWN_DASHES: tuple[Any, ...] = ((0, (4, 2)), (0, (1.5, 1)), (0, (7, 2)))
CHANCE = Look(GREY, "x", OWN_DASHES[0], 1.4)


def looks_of(
    methods: Sequence[str],
    random: str | None,
    unpruned: Sequence[str],
    control_of: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Look]:
    """A look per method: controls grey, the others by their place, colours first, then markers and dashes.

    The controls of one method are dashed in its colour, the first of them like every random control.
    """
    looks: dict[str, Look] = {}
    place = 0
    for method in methods:
        if method == random:
            looks[method] = CHANCE
        elif method in unpruned:
            looks[method] = Look(INK, "", (0, (1, 1.5)), 1.4)
        elif method not in control_of:
            dash = DASHES[place // len(PALETTE) % len(DASHES)]
            looks[method] = Look(PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)], dash)
            place += 1
    own = Counter[str]()
    for control, method in control_of.items():
        color = looks[method].color if method in looks else GREY
        looks[control] = replace(CHANCE, color=color, dash=OWN_DASHES[own[method] % len(OWN_DASHES)])
        own[method] += 1
    return looks


def linear_limits(
    dense: tuple[float, float], values: Sequence[tuple[float, float]], higher_is_better: bool, percent: bool
) -> tuple[float, float]:
    """Limits of a linear axis in which differences near dense can be read.

    ``dense`` and ``values`` are (mean, spread). A few collapsed points must not squeeze all the others into
    a line at the top: the axis ends at the worst point, or at three times the median loss (and at least 3
    points, or half of the dense error) from dense if that is nearer.
    """
    flip = 1.0 if higher_is_better else -1.0
    base = dense[0]
    losses = [flip * (base - mean) for mean, _ in values]
    floor = 3.0 if percent else 0.5 * abs(base) or 1.0
    room = max(floor, 3 * statistics.median(losses or [0.0]))
    worst = max([flip * (base - mean) + sd for mean, sd in values] + [dense[1], 0.0])
    best = min([flip * (base - mean) - sd for mean, sd in values] + [-dense[1], 0.0])
    down = min(worst, room)
    # Nor must a tenth of a point fill the picture: the axis spans a point, or a tenth of the dense error.
    down = max(down, best + (1.0 if percent else 0.1 * abs(base) or 0.1))
    pad = 0.06 * (down - best)
    low, high = sorted((base - flip * (down + pad), base - flip * (best - pad)))
    return low, high


def log_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis around all positive values, at least a factor of 1.5 apart."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    pad = max((high / low) ** 0.06, 1.02)
    if high / low < 1.5:
        pad = max(pad, math.sqrt(1.5 * low / high))
    return low / pad, high * pad


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high] (0 < low < high), about evenly spread in the logarithm."""
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [
            d * 10.0**e
            for e in decades
            for d in digits
            if low <= d * 10.0**e * (1 + 1e-9) <= high * (1 + 2e-9)
        ]
        if len(ticks) >= 4:
            return ticks
    return [t for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]


def ratio_ticks(high: float) -> list[float]:
    """1, 2, 5, 10, 20, 50, 100, ... as far as ``high``, and finer ones where that is below 5."""
    if high < 5:
        return [t for t in (1, 1.25, 1.5, 2, 2.5, 3, 4) if t <= high]
    return [d * 10.0**e for e in range(0, 9) for d in (1, 2, 5) if d * 10.0**e <= high]


def tick_text(value: float) -> str:
    """A tick as '0.05', '12', '1500': no exponent for ordinary sizes."""
    return f"{value:.6g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:.0e}"


def chart_axis(axis: Axis, label: str, unit: str = "") -> ChartAxis:
    """The limits and ticks of a drawn axis; ``unit`` stands behind the number of each tick."""
    low, high = sorted(float(limit) for limit in axis.get_view_interval())
    ticks = tuple(
        (float(tick), f"{tick_text(tick)}{unit}") for tick in axis.get_majorticklocs() if low <= tick <= high
    )
    return ChartAxis(label, axis.get_scale() == "log", low, high, ticks)


def clean(axes: Axes) -> None:
    """Pale horizontal grid, no frame on top and right."""
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, width=0.8, labelsize=8.5)


def set_log_y(axes: Axes, low: float, high: float) -> None:
    """A logarithmic y axis with readable ticks, over [low, high]."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))


def set_ratio_x(axes: Axes, high: float) -> None:
    """A logarithmic x axis of ratios from 1x to ``high``."""
    axes.set_xscale("log")
    axes.set_xlim(0.97, high * 1.06)
    axes.xaxis.set_major_locator(FixedLocator(ratio_ticks(high * 1.06)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{tick_text(value)}x"))


@dataclass(frozen=True, slots=True)
class End:
    """The end of a line to be named: data coordinates; ``x`` is None for a line over the whole width.

    ``leaves`` is where a line that ends outside the frame leaves it.
    """

    text: str
    look: Look
    x: float | None
    y: float
    leaves: float


def cut(name: str, length: int) -> str:
    """The name, cut to so many characters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def new_labelled(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure and axes that leave room at the right for these names, and for that of dense."""
    figure = Figure(figsize=(WIDTH, max(4.6, 1.3 + 0.2 * (len(names) + 1))))
    right = 1 - (0.55 + 0.073 * max(16, *(len(cut(name, LONGEST)) for name in names))) / WIDTH
    axes = figure.add_axes((0.062, 0.108, right - 0.062, 0.872))
    clean(axes)
    return figure, axes


def set_labels(axes: Axes, ends: Sequence[End]) -> None:
    """Write the names at the right of the axes, moved apart where they would touch, each with a swatch."""
    size = axes.get_window_extent()
    height, inch = size.height / axes.figure.dpi, axes.figure.dpi / size.width
    wanted = [_height(axes, end) for end in ends]
    for end, want, y in zip(ends, wanted, spread_out(wanted, LINE / height, 0.01, 0.99), strict=True):
        start = 1.0 if end.x is None else _in_axes(axes, end.x, end.y)[0]
        moved = abs(want - y) > 0.2 * LINE / height
        inside = axes.get_ylim()[0] <= end.y <= axes.get_ylim()[1]
        around: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        if inside and start > 1 - NEAR and (moved or end.x is not None):
            x = [start + 0.06 * inch, max(start, 1) + 0.02 * inch, 1 + 0.12 * inch]
            axes.plot(x, [want, want, y], color=end.look.color, linewidth=0.7, alpha=0.45, **around)
        x = [1 + 0.14 * inch, 1 + 0.27 * inch, 1 + 0.40 * inch]
        axes.plot(
            *(x, [y, y, y]), marker=end.look.marker, markersize=4.5, markevery=[1], **end.look.line, **around
        )
        name = cut(end.text, LONGEST)
        axes.text(1 + 0.46 * inch, y, name, va="center_baseline", fontsize=8.5, **around)


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


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions nearest to the wanted ones, in the same order, at least ``gap`` apart within [low, high].

    Where they cannot all fit they are set evenly. Least squares by pooling neighbours that violate the gap.
    """
    n = len(wanted)
    if n == 0:
        return []
    gap = min(gap, (high - low) / (n - 1)) if n > 1 else gap
    order = sorted(range(n), key=lambda i: (wanted[i], i))
    blocks: list[list[float]] = []  # mean of (wanted - place x gap), count
    for place, index in enumerate(order):
        blocks.append([wanted[index] - place * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size),
                blocks[-1][1] + size,
            ]
    flat = [mean for mean, size in blocks for _ in range(int(size))]
    top = high - (n - 1) * gap
    found = {index: min(max(flat[at], low), top) + at * gap for at, index in enumerate(order)}
    return [found[index] for index in range(n)]


_MARKER = re.compile(r'<g id="(point-\d+-\d+)">')


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with what a page needs around it.

    ``tips`` maps the gid of a marker ('point-<method>-<k>') to the text shown when it is pointed at.
    ``charts`` are the same curves as an interactive page draws them, none where a figure is shown as it is.
    Figures that are not ``first`` may be folded away.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    tips: Mapping[str, str]
    charts: tuple[Chart, ...] = ()
    first: bool = True


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, whole; DataError if that fails."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


@drawing_style()
def svg_of(drawing: Drawing) -> str:
    """The figure as SVG text, as of `figure_svg`, with a tooltip at every marker."""
    return _MARKER.sub(
        lambda found: f"{found.group()}<title>{escape(drawing.tips[found.group(1)])}</title>",
        figure_svg(drawing.figure),
    )


@drawing_style()
def figure_svg(figure: Figure) -> str:
    """A figure as SVG text: text as text, no date, in colours for a light and a dark theme."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return for_both_themes(buffer.getvalue().decode())


def inline(svg: str, drawing: Drawing) -> str:
    """The SVG for use within HTML, in the colours of the page.

    Without the XML head and fixed size; every id gets the figure's name in front, since ids must be unique
    in a page; role and label for those who do not see it.
    """
    head, body = svg[svg.index("<svg ") :].split(">", 1)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style .*?</style>", "", body, count=1, flags=re.DOTALL)  # would act on the whole page
    # Text holds no raw "<", so that these match in tags only, whatever a method is called.
    body = re.sub(r'(<\w+ id=")', rf"\1{drawing.name}--", body)
    body = re.sub(r'(<[^<>]* xlink:href="#)', rf"\1{drawing.name}--", body)
    body = re.sub(r"(<[^<>]*\burl\(#)", rf"\1{drawing.name}--", body)
    body = re.sub(r'style="[^"]*"', lambda found: themed(found.group()), body)
    box = re.search(r'viewBox="[^"]+"', head)
    if box is None:  # every matplotlib SVG has one
        raise ValueError("SVG without a viewBox")
    label = escape(f"{drawing.title}. {drawing.caption}".strip())
    share = drawing.figure.get_figwidth() / WIDTH
    style = f"stroke-linejoin:round;stroke-linecap:butt;--share:{share:g}"
    return f'<svg {box.group()} role="img" aria-label="{label}" style="{style}">{body}'


@drawing_style()
def save(drawing: Drawing, folder: Path) -> str:
    """Write folder/<name>.svg and .png; return the SVG text."""
    svg = svg_of(drawing)
    write_atomically(folder / f"{drawing.name}.svg", svg.encode())
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    write_atomically(folder / f"{drawing.name}.png", buffer.getvalue())
    return svg
