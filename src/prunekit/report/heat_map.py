"""Heat map of what each method removes from each layer, as a figure and as a table of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure

from prunekit.report.best import asked_ratios, point_at
from prunekit.report.points import (
    LayerPoint,
    Point,
    Primary,
    dense_of,
    layers_of,
    methods_of,
    times,
    times_of,
)
from prunekit.report.style import WIDTH, Drawing, cut, drawing_style
from prunekit.report.theme import PALE, contrast

#: From light to dark blue: legible in grey print too.
SHADES = LinearSegmentedColormap.from_list("prunekit", ["#f4f8fc", "#9ecae8", "#2b7cb8", "#08335f"])
#: Letters on them: one of the two has a contrast of 4.5 on any colour.
INKS = ("#000000", "#ffffff")
#: Behind a layer that a method does not have.
UNKNOWN = PALE
#: A figure of more rows than this has no numbers in its cells.
MOST_NUMBERED = 40


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A cell: its text, and the colours behind it and of its letters."""

    text: str
    paper: str
    ink: str


def percent_removed(removed: float) -> str:
    """A fraction as percent, '83.2'; 100 only where nothing is left."""
    text = f"{100 * removed:.1f}"
    return text if text != "100.0" else "100" if removed == 1 else ">99.9"


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

    @property
    def title(self) -> str:
        """The heading of the map."""
        return f"What each method removes from each layer at {self.ratios}"

    @property
    def caption(self) -> str:
        """What stands below the map."""
        return (
            "Percent of the layer removed (darker is more), layers in the order of the network; with "
            "each method its own compression at that point."
        )

    @property
    def scale(self) -> Normalize:
        """From percent to shades: over at least 20 points, so that small differences do not look large."""
        least = min(100 * min(found.values()) for found in self.sparsity.values())
        return Normalize(min(80.0, 10 * np.floor(least / 10)), 100)

    def cell(self, layer: str, method: str) -> HeatCell:
        """The cell of one layer and method."""
        removed = self.sparsity[layer].get(method)
        if removed is None:
            return HeatCell("–", UNKNOWN, INKS[0])
        paper = to_hex(SHADES(self.scale(100 * removed)))
        return HeatCell(percent_removed(removed), paper, max(INKS, key=lambda ink: contrast(ink, paper)))


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
def heat_drawing(table: LayerTable) -> Drawing:
    """Layers (rows) by methods (columns) at about one compression; a cell is the percent removed."""
    methods = list(table.at)
    values = np.array(
        [[100 * table.sparsity[layer.layer].get(m, np.nan) for m in methods] for layer in table.layers]
    )
    rows, columns = values.shape
    names = [f"{cut(layer.layer, 30)}  {layer.shape}" for layer in table.layers]
    margin = 0.3 + 0.07 * max(len(name) for name in names)
    column = min(1.1, (9.8 - margin - 0.9) / columns)
    line = 0.3 if rows <= MOST_NUMBERED else 0.14
    top = 0.2 + 0.04 * max(len(cut(m, 30)) + 5 for m in methods)
    width, height = WIDTH, top + line * rows + 0.2
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, 0.12 / height, column * columns / width, line * rows / height))
    axes.pcolormesh(values, cmap=SHADES, norm=table.scale, edgecolors="white", linewidth=1.2)
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
        for i, j in np.ndindex(values.shape):
            cell = table.cell(table.layers[i].layer, methods[j])
            axes.text(j + 0.5, i + 0.5, cell.text, ha="center", va="center", fontsize=8, color=cell.ink)
    return Drawing(
        "layers-methods",
        table.title,
        table.caption,
        figure,
        {},
    )
