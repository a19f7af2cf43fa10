"""Names beside the axes, at the height where each line ends: no legend to look up, no data covered."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunekit.report.style import Look, spread_out

#: Longer names are cut: the tables have them in full.
LONGEST = 34
#: A line that ends further from the right edge than this (of the width) is named without a leader, which
#: would cross the picture like one more curve.
NEAR = 0.15
#: Height of a line of text, in inches.
LINE = 0.19


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
            leader = _line(
                axes, end.look, gid, [start + 0.06 * inch, max(start, 1) + 0.02 * inch, 1 + 0.12 * inch]
            )
            leader.set(ydata=[want, want, y], linewidth=0.7, alpha=0.45, linestyle="-")
        swatch = _line(axes, end.look, gid, [1 + 0.14 * inch, 1 + 0.27 * inch, 1 + 0.40 * inch])
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


def _line(axes: Axes, look: Look, gid: str | None, x: list[float]) -> Line2D:
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
