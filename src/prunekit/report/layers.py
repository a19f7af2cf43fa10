"""Figures of layers and of their units: sparsity by layer, regret against the oracle, gains, correlations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from prunekit.report.best import asked_ratios, point_at
from prunekit.report.charts import Chart, chart_curve
from prunekit.report.curves import Level, Measured, Placed, PlotData, chart_of, draw_lines
from prunekit.report.points import (
    MOST_POINTS,
    LayerPoint,
    Point,
    Primary,
    Spread,
    curve_of,
    dense_of,
    methods_of,
    removes_nothing,
    times,
    times_of,
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

#: From light to dark blue: legible in grey print too, and text on it can be black or white.
BLUES = LinearSegmentedColormap.from_list("prunekit", ["#f4f8fc", "#9ecae8", "#2b7cb8", "#08335f"])
#: Letters on its colours, which are the same on every page: not those of the page's theme.
ON_PALE, ON_DARK = "#16191f", "#fdfdfd"
#: More layers than this are not named one by one beside the small multiples, but shown on a colour bar.
MOST_NAMED = 10
#: Height of a line of panels, in inches, and length to which names are cut.
ROW, NAME = 1.95, 26
#: A heat map of more rows than this has no numbers in its cells.
MOST_NUMBERED = 40


@dataclass(frozen=True, slots=True)
class LayerTable:
    """Per-layer sparsity of several methods at about the same compression.

    ``asked`` only says which points are shown: texts give the ratios of the points themselves. ``layers``
    has a point of each layer, for its name and size. ``sparsity[layer][method]`` is a fraction in [0, 1], or
    missing; ``at`` gives each method's own point.
    """

    asked: float
    layers: tuple[LayerPoint, ...]
    at: dict[str, Point]
    sparsity: dict[str, dict[str, float]]

    @property
    def ratios(self) -> str:
        """The compression that the methods were run at there: '10x', '7.8x to 10x'."""
        return times_of(self.at.values())


def layers_of(found: Sequence[LayerPoint]) -> tuple[LayerPoint, ...]:
    """The first point of each layer, in their order in the network."""
    layers: dict[str, LayerPoint] = {}
    for p in found:
        layers.setdefault(p.layer, p)
    return tuple(layers.values())


def layer_table(points: Sequence[Point], found: Sequence[LayerPoint], primary: Primary) -> LayerTable | None:
    """The table at the ratio of ASKED where most methods have a point; None if there is no such point.

    Of ratios with as many methods: the largest at which some method still holds to dense, since what is
    spared matters most there; failing that the smallest.
    """
    known = {p.method for p in found}
    methods = [m for m in methods_of(points) if m in known]
    dense = dense_of(points)
    best: tuple[tuple[int, bool, float], float, dict[str, Point]] | None = None
    for asked in asked_ratios(points, primary):
        at = {m: point for m in methods if (point := point_at(points, m, asked, primary))}
        held = any(primary.holds(p, dense) for p in at.values())
        rank = (len(at), held, asked if held else -asked)
        if at and (best is None or rank > best[0]):
            best = rank, asked, at
    if best is None:
        return None
    _, asked, at = best
    places = {(p.method, p.cell, p.step): m for m, p in at.items()}
    sparsity: dict[str, dict[str, float]] = {}
    for p in found:
        method = places.get((p.method, p.cell, p.step))
        if method is not None:
            sparsity.setdefault(p.layer, {})[method] = p.sparsity
    there = tuple(p for p in layers_of(found) if p.layer in sparsity)
    return LayerTable(asked, there, at, sparsity) if there else None


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


@drawing_style()
def heat_drawing(table: LayerTable) -> Drawing:
    """Layers (rows) by methods (columns) at about one compression; a cell is the percent removed."""
    methods = list(table.at)
    values = np.array(
        [[100 * table.sparsity[layer.layer].get(m, np.nan) for m in methods] for layer in table.layers]
    )
    rows, columns = values.shape
    names = [f"{cut(layer.layer, 30)}  {layer.shape}" for layer in table.layers]
    margin = 0.3 + 0.07 * max(len(name) for name in names)
    cell = min(1.1, (9.8 - margin - 0.9) / columns)
    line = 0.3 if rows <= MOST_NUMBERED else 0.14
    top = 0.2 + 0.04 * max(len(cut(m, 30)) + 5 for m in methods)
    width, height = WIDTH, top + line * rows + 0.2
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, 0.12 / height, cell * columns / width, line * rows / height))
    # From the lowest value, and over at least 20 points: small differences must not look large.
    lowest = min(80.0, 10 * np.floor(np.nanmin(values) / 10))
    scale = Normalize(lowest, 100)
    axes.pcolormesh(values, cmap=BLUES, norm=scale, edgecolors="white", linewidth=1.2)
    axes.set_ylim(rows, 0)
    axes.set_xlim(0, columns)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(rows) + 0.5, names, fontsize=8 if rows <= MOST_NUMBERED else 5.5)
    axes.xaxis.tick_top()
    labels = [f"{cut(m, 30)} ({times(table.at[m].ratio)})" for m in methods]
    axes.set_xticks(
        np.arange(columns) + 0.5, labels, fontsize=8, rotation=35, ha="left", rotation_mode="anchor"
    )
    if rows <= MOST_NUMBERED:
        for (i, j), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{value:.0f}" if value < 99 else f"{value:.1f}"
            ink = ON_DARK if scale(value) > 0.62 else ON_PALE
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
    return Drawing(
        "layers-methods",
        f"What each method removes from each layer at {table.ratios}",
        "Percent of the layer removed (darker is more), layers in the order of the network; beside "
        "each method its own compression at that point.",
        figure,
        {},
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
