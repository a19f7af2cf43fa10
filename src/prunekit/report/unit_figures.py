"""Figures of units: the regret of each method against the oracle, gain sweeps, correlations clustered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prunekit.report.curves import Measured, Placed, PlotData, draw_lines
from prunekit.report.points import Point, Primary, Spread
from prunekit.report.style import (
    DENSE_LOOK,
    DEPTH_OF_BAR,
    GREY,
    WIDTH,
    Drawing,
    End,
    clean,
    drawing_style,
    log_limits,
    new_labelled,
    set_log_y,
)
from prunekit.study_files import UNITS_JSON, StudyFile, UnitData, read_checked

Numbers = NDArray[np.float64]

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
        recipes = note.recipe if isinstance(note.recipe, list) else [note.recipe]
        if recipes and all(_measures(recipe) for recipe in recipes):
            return label
    return None


def _measures(recipe: Mapping[str, Any]) -> bool:
    named = {part: _name(recipe.get(part)) for part in ("score", "repair", "retrain")}
    plain = named["repair"] in (None, "none") and named["retrain"] in (None, "none")
    return named["score"] == "oracle" and plain and recipe.get("rank") != "once"


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, Mapping) else part


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
            found[point.method][round(point.values["kept"].mean * (point.ratio - 1))] = point
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
    shown = [item for item in everything if item.point.method != data.random] or everything
    figure, axes = new_labelled(list(curves))
    axes.set_xlim(*_around([item.x for item in everything], 0.05))
    axes.set_ylim(*_around([item.y.mean for item in shown], 0.04))
    axes.axhline(0.0, **DENSE_LOOK.line)
    level = End(-1, yardstick, DENSE_LOOK, None, 0.0, 0.0)
    tips = draw_lines(axes, data, curves, measured, [level])
    axes.set_xlabel("units removed")
    return Drawing(
        "regret",
        f"Regret against {yardstick}",
        "Means over the seeds; above the line a method loses more with as many units removed.",
        figure,
        tips,
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
