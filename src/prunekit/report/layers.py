"""Figures of layers and of their units: sparsity by layer, regret against the oracle, gains, correlations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from prunekit.report.charts import Chart, chart_curve
from prunekit.report.curves import Level, Measured, Placed, PlotData, chart_of, draw_lines
from prunekit.report.points import (
    MOST_POINTS,
    LayerPoint,
    Point,
    Primary,
    Spread,
    curve_of,
    layers_of,
    removes_nothing,
)
from prunekit.report.style import (
    DENSE_LOOK,
    DEPTH,
    DEPTH_OF_BAR,
    WIDTH,
    Drawing,
    Look,
    chart_axis,
    clean,
    cut,
    drawing_style,
    log_limits,
    new_labelled,
    set_log_y,
)
from prunekit.report.theme import GREY, INK, PALE
from prunekit.study_files import UNITS_JSON, StudyFile, UnitData, part_name, read_checked

Numbers = NDArray[np.float64]

# ---- layers ------------------------------------------------------------------------------------------------

#: More layers than this are not named one by one beside the small multiples, but shown on a colour bar.
MOST_NAMED = 10
#: Height of a line of panels, in inches, and length to which names are cut.
ROW, NAME = 1.95, 26


@drawing_style()
def multiples_drawing(
    points: Sequence[Point], found: Sequence[LayerPoint], methods: Sequence[str]
) -> Drawing | None:
    """A panel per method: the sparsity of each layer (y) against that of the whole (x), in percent."""
    known = {p.method for p in found}
    methods = [m for m in methods if m in known and not removes_nothing(points, m)]
    if not methods:
        return None
    layers = [p.layer for p in layers_of(found)]
    shade = {name: to_hex(DEPTH(0.85 * i / max(1, len(layers) - 1))) for i, name in enumerate(layers)}
    sparsity = {(p.method, p.cell, p.step, p.layer): 100 * p.sparsity for p in found}
    columns = min(4, max(2, len(methods)))
    lines = -(-len(methods) // columns)
    named = len(layers) <= MOST_NAMED
    per_line = max(2, 40 // (3 + max(len(cut(name, NAME)) for name in layers)) + 2)
    legend = 0.2 * -(-len(layers) // per_line) if named else 0.4
    figure = Figure(figsize=(WIDTH, 0.65 + ROW * lines + legend))
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.04)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    low = 100 * min(p.sparsity for p in points if p.method in methods)
    least = 100 * min(p.sparsity for p in found if p.method in methods)
    panels[0, 0].set_xlim(max(0.0, low - 4), 101)
    panels[0, 0].set_ylim(max(-2.0, least - 6), 103)
    for axes in panels.flat[len(methods) :]:
        axes.set_axis_off()
    charts = []
    for axes, method in zip(panels.flat, methods, strict=False):
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
        clean(axes)
        axes.grid(axis="x", color=PALE, linewidth=0.8)
        axes.tick_params(labelsize=7.5, labelbottom=True)
        axes.set_title(cut(method, NAME), fontsize=9, loc="left", pad=4, color=INK)
        curve = curve_of(points, method)
        marker = "o" if len(curve) <= MOST_POINTS else ""
        x = [100 * p.sparsity for p in curve]
        for name in layers:
            y = [sparsity.get((p.method, p.cell, p.step, name), np.nan) for p in curve]
            axes.plot(x, y, color=shade[name], linewidth=1.3, marker=marker, markersize=2.4)
        charts.append(_panel(axes, method, curve, sparsity, shade))
    for axes in panels[:, 0]:
        axes.set_ylabel("removed in layer (%)", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("removed in the whole (%)", fontsize=8)
    if named:
        handles = [Line2D([], [], color=shade[name], linewidth=2.2, label=cut(name, NAME)) for name in layers]
        figure.legend(handles=handles, loc="outside lower left", ncols=per_line, fontsize=8, frameon=False)
    else:
        mappable = ScalarMappable(Normalize(0, len(layers) / 0.85), DEPTH_OF_BAR)
        bar = figure.colorbar(mappable, ax=panels, location="bottom", fraction=0.03, shrink=0.4, aspect=40)
        bar.ax.set_xlim(0, len(layers))
        bar.set_ticks(
            [0, len(layers)], labels=[f"first: {cut(layers[0], NAME)}", f"last: {cut(layers[-1], NAME)}"]
        )
    return Drawing(
        "layers-sparsity",
        "Sparsity of each layer as the network gets smaller",
        "One panel per method, one line per layer, from the input (dark) to the output (light). On the grey "
        "diagonal a layer loses as much as the network does; above it loses more, below it is spared.",
        figure,
        {},
        charts=tuple(charts),
    )


def _panel(
    axes: Axes,
    method: str,
    curve: Sequence[Point],
    sparsity: Mapping[tuple[str, str, int, str], float],
    shade: Mapping[str, str],
) -> Chart:
    """The panel of a method, for a page that draws it itself."""
    curves = []
    for name, color in shade.items():
        found = [
            (p, 100 * p.sparsity, Spread(removed, None))
            for p in curve
            if (removed := sparsity.get((p.method, p.cell, p.step, name))) is not None
        ]
        if found:
            values = [f"{removed.mean:.1f}%" for _, _, removed in found]
            places = [f"{x:.1f}%" for _, x, _ in found]
            curves.append(chart_curve(name, Look(color, "o", "-", 1.3).on_page, found, values, places))
    return Chart(
        chart_axis(axes.xaxis, "removed in the whole (%)"),
        chart_axis(axes.yaxis, "removed in layer (%)"),
        tuple(curves),
        method=method,
        diagonal=True,
    )


# ---- units -------------------------------------------------------------------------------------------------

LEAST_SHARED = 3
"""A line of fewer points than this says nothing of a course of removals."""


def unit_drawings(folder: Path, study: StudyFile, data: PlotData, primary: Primary) -> list[Drawing]:
    """What can be drawn of the units of a study: the regret from its tables, the rest from `units.json`.

    Raises:
        DataError: if there is a `units.json`, and it is damaged.
    """
    drawings = []
    yardstick = oracle_of(study)
    if yardstick in data.methods and primary.higher_is_better:
        curves = regret_curves(data, primary, yardstick)
        if curves:
            drawings.append(regret_drawing(curves, data, primary, yardstick))
    if (folder / UNITS_JSON).is_file():
        found = read_checked(folder / UNITS_JSON, UnitData)
        errors = np.array([sweep.errors for sweep in found.sweeps])
        removed = [sweep.removed for sweep in found.sweeps]
        drawings.append(gain_sweep_drawing(np.array(found.gains), errors, removed, found.error))
        matrices = {name: np.array(matrix) for name, matrix in found.correlations.items()}
        drawings.append(correlation_drawing(matrices))
    return drawings


def oracle_of(study: StudyFile) -> str | None:
    """The label of the method that removes by the true cost alone, measured anew at each step."""
    for label, note in study.methods.items():
        if note.recipes and all(_measures(recipe) for recipe in note.recipes):
            return label
    return None


def _measures(recipe: Mapping[str, Any]) -> bool:
    named = {key: part_name(recipe, key) for key in ("score", "repair", "retrain")}
    plain = named["repair"] in (None, "none") and named["retrain"] in (None, "none")
    return named["score"] == "oracle" and plain and recipe.get("rank") != "once"


def regret_curves(data: PlotData, primary: Primary, yardstick: str) -> dict[str, list[Placed]]:
    """By method, how many points more it loses with as many units removed, where enough numbers are shared.

    Args:
        data: the points of the study.
        primary: the quality, a fraction.
        yardstick: the method that the others are measured against.
    """
    found: dict[str, dict[int, Point]] = {method: {} for method in data.methods}
    for point in data.points:
        quality = point.values.get(primary.test)
        if point.method in found and quality is not None and quality.finite:
            removed = point.values["kept"].mean * point.sparsity / (1 - point.sparsity)
            found[point.method][round(removed)] = point
    best = found.pop(yardstick)
    curves: dict[str, list[Placed]] = {}
    for method, points in found.items():
        shared = sorted(set(best) & set(points))
        if len(shared) >= LEAST_SHARED:
            gaps = [best[n].values[primary.test].mean - points[n].values[primary.test].mean for n in shared]
            curves[method] = [
                Placed(points[n], n, Spread(100 * gap, None)) for n, gap in zip(shared, gaps, strict=True)
            ]
    return curves


@drawing_style()
def regret_drawing(
    curves: Mapping[str, Sequence[Placed]], data: PlotData, primary: Primary, yardstick: str
) -> Drawing:
    """How much more each method loses than the oracle with as many units removed; random sets no scale."""
    label = f"{primary.name} below that of {yardstick} (points)"
    measured = Measured("regret", primary.test, label, log=False, higher_is_better=False)
    everything = [item for curve in curves.values() for item in curve]
    shown = [item for item in everything if item.point.method not in data.controls] or everything
    figure, axes = new_labelled(list(curves))
    axes.set_xlim(*_around([item.x for item in everything], 0.05))
    axes.set_ylim(*_around([item.y.mean for item in shown], 0.04))
    levels = [Level(yardstick, DENSE_LOOK, Spread(0.0, None))]
    tips = draw_lines(axes, data, curves, measured, levels)
    axes.set_xlabel("units removed")
    return Drawing(
        "regret",
        f"Regret against {yardstick}",
        "Means over the seeds; above the line a method loses more with as many units removed.",
        figure,
        tips,
        charts=(chart_of(axes, data, curves, measured, levels, lambda units: f"{units:.0f} units"),),
    )


def _around(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Limits of an axis, with a margin that is a part of what the values span."""
    low, high = min(values), max(values)
    pad = margin * (high - low) or 0.1
    return low - pad, high + pad


@drawing_style()
def gain_sweep_drawing(gains: Numbers, errors: Numbers, removed: Sequence[int], error: str) -> Drawing:
    """The error against the gain of some units, each just before it is removed, linear and logarithmic.

    Wolfe, Sharma and Raj (arXiv 1701.04465). Filled marks are the unit on (gain 1), hollow ones off (0).

    Args:
        gains: (G,) with 0 and 1 among them.
        errors: (units, G).
        removed: how many units were off already, for each.
        error: what the error is called.
    """
    figure = Figure(figsize=(WIDTH, 4.4))
    figure.set_layout_engine("constrained")
    shades = ScalarMappable(Normalize(0, max(1, *removed) / 0.88), DEPTH_OF_BAR)
    on, off = (int(np.argmin(np.abs(gains - gain))) for gain in (1.0, 0.0))
    panels = figure.subplots(1, 2)
    for axes in panels:
        clean(axes)
        for row, shade in zip(errors, shades.to_rgba(np.array(removed)), strict=True):
            axes.plot(gains, row, color=shade, linewidth=1.4)
            axes.plot(gains[on], row[on], "o", markersize=5.5, color=shade, zorder=3)
            axes.plot(gains[off], row[off], "o", markersize=5.5, color=shade, mfc="white", zorder=3)
        axes.set_xlabel("gain of the unit (1 = on, 0 = off)")
    panels[0].set_ylabel(error)
    panels[1].set_ylabel(f"{error}, log scale")
    set_log_y(panels[1], *log_limits([float(value) for value in errors.flatten()]))
    bar = figure.colorbar(shades, ax=panels, shrink=0.9)
    bar.ax.set_ylim(0, max(1, *removed))
    bar.set_label("units removed before")
    return Drawing(
        "gain-sweep",
        "Error against the gain of a unit",
        "One line for every unit shown, just before it is removed, with so many removed before it.",
        figure,
        {},
    )


@drawing_style()
def correlation_drawing(correlations: Mapping[str, Numbers]) -> Drawing:
    """Heat maps of Pearson's r between the units of each layer, similar units side by side.

    Units are ordered by average linkage on 1 - |r|, so that blocks on the diagonal are units that can stand
    in for each other, whatever the sign.

    Args:
        correlations: by layer (units, units).
    """
    figure = Figure(figsize=(max(5.6, 4.9 * len(correlations) + 0.6), 4.6))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(correlations), squeeze=False)[0]
    for axes, (name, found) in zip(panels, correlations.items(), strict=True):
        order = clustered(found)
        image = axes.imshow(
            found[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        axes.set(title=name, xlabel="units, similar ones side by side", xticks=[], yticks=[])
        axes.spines[["top", "right"]].set_color(GREY)
    figure.colorbar(image, ax=panels, shrink=0.8).set_label("Pearson's r")
    return Drawing(
        "correlation",
        "Correlation between units",
        "Pearson's r of what the next layer reads; red together, blue in opposition.",
        figure,
        {},
    )


def clustered(correlation: Numbers) -> list[int]:
    """The order of units in which similar ones stand side by side: average linkage on 1 - |r|."""
    if len(correlation) < 3:
        return list(range(len(correlation)))
    from scipy.cluster.hierarchy import leaves_list, linkage  # scipy takes long, and few reports have units
    from scipy.spatial.distance import squareform

    apart = 1 - np.abs(correlation)
    np.fill_diagonal(apart, 0.0)
    apart = np.clip((apart + apart.T) / 2, 0.0, 1.0)
    return [int(unit) for unit in leaves_list(linkage(squareform(apart), "average", optimal_ordering=True))]
