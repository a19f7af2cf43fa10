"""Sparsity of each layer: the numbers at one compression, small multiples, and a heat map."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunekit.report.findings import asked_ratios, point_at
from prunekit.report.points import (
    MOST_POINTS,
    LayerPoint,
    Point,
    Primary,
    curve_of,
    dense_of,
    methods_of,
    removes_nothing,
    times,
)
from prunekit.report.style import (
    DEPTH,
    DEPTH_OF_BAR,
    GREY,
    INK,
    PALE,
    WIDTH,
    Drawing,
    clean,
    cut,
    drawing_style,
)

#: From light to dark blue: legible in grey print too, and text on it can be black or white.
BLUES = LinearSegmentedColormap.from_list("prunekit", ["#f4f8fc", "#9ecae8", "#2b7cb8", "#08335f"])
#: More layers than this are not named one by one beside the small multiples, but shown on a colour bar.
MOST_NAMED = 10
#: Height of a line of panels, in inches, and length to which names are cut.
ROW, NAME = 1.95, 26
#: A heat map of more rows than this has no numbers in its cells.
MOST_NUMBERED = 40


@dataclass(frozen=True, slots=True)
class LayerTable:
    """Per-layer sparsity of several methods at about the same compression.

    ``layers`` has a point of each layer, for its name and size. ``sparsity[layer][method]`` is a fraction in
    [0, 1], or missing; ``at`` gives each method's own point.
    """

    asked: float
    layers: tuple[LayerPoint, ...]
    at: dict[str, Point]
    sparsity: dict[str, dict[str, float]]


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
    shade = {name: DEPTH(0.85 * i / max(1, len(layers) - 1)) for i, name in enumerate(layers)}
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
            ink = "white" if scale(value) > 0.62 else INK
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
    return Drawing(
        "layers-methods",
        f"What each method removes from each layer at about {times(table.asked)}",
        "Percent of the layer removed (darker is more), layers in the order of the network; beside "
        "each method its own compression at that point.",
        figure,
        {},
    )
