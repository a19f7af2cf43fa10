"""The two long tables of the page, as text: every point, and every layer."""

from dataclasses import dataclass

from prunekit.report.figures import Scene
from prunekit.report.layers import LayerTable
from prunekit.report.points import Point, fewer
from prunekit.report.style import DENSE_LOOK, INK
from prunekit.report.words import Primary, count, percent_spread, plain_spread, times


@dataclass(frozen=True, slots=True)
class Swatch:
    """A method's colour and dash, as in the figures; dense is written in the colour of the text."""

    color: str
    dash: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell: what is read, and the number to sort by."""

    text: str
    key: float


@dataclass(frozen=True, slots=True)
class NumberLine:
    """One line of the full numbers."""

    series: int
    swatch: Swatch
    method: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class LayerView:
    """The per-layer table: a column per method; ``lines`` hold name, shape, weights and a text per method."""

    asked: str
    methods: tuple[str, ...]
    lines: tuple[tuple[str, str, str, tuple[str, ...]], ...]


def swatch_of(scene: Scene, method: str) -> Swatch:
    """How a method is marked in a table."""
    look = scene.looks.get(method, DENSE_LOOK)
    # Ink would vanish on a dark page.
    return Swatch("currentColor" if look.color == INK else look.color, look.dasharray)


def series_of(scene: Scene, method: str) -> int:
    """The number of a method in the figures, -1 for dense."""
    return scene.methods.index(method) if method in scene.methods else -1


def number_lines(scene: Scene, primary: Primary) -> tuple[tuple[str, ...], tuple[NumberLine, ...]]:
    """Heads and lines of the table of points; columns that no point fills are left out."""
    points = scene.points
    show = percent_spread if primary.higher_is_better else plain_spread
    quality = [
        (primary.validation, primary.validation.replace("_", " "), show),
        (primary.test, primary.test.replace("_", " "), show),
    ]
    if any("test_top5" in p.values for p in points):
        quality.append(("test_top5", "test top-5", percent_spread))
    if any("test_loss" in p.values for p in points):
        quality.append(("test_loss", "test loss", plain_spread))
    sizes = [
        (key, head)
        for key, head in (("macs_nonzero", "MACs left"), ("bytes", "bytes"), ("seconds", "seconds"))
        if any(key in p.values for p in points)
    ]
    heads = ("step", "seeds", "removed", "ratio", "kept", *(h for _, h, _ in quality), *(h for _, h in sizes))
    lines = []
    for point in fewer(points):
        cells = [
            Cell(str(point.step), point.step),
            Cell(str(point.seeds), point.seeds),
            Cell(f"{100 * point.sparsity:.1f}%", point.sparsity),
            Cell(f"{point.ratio:.2f}x", point.ratio),
            Cell(count(point.values["kept"].mean), point.values["kept"].mean),
        ]
        cells += [Cell(say(point.values.get(key)), _key(point, key)) for key, _, say in quality]
        for key, _ in sizes:
            value = point.values[key].mean if key in point.values else None
            cells.append(
                Cell(
                    f"{value:.1f}" if key == "seconds" and value is not None else count(value),
                    _key(point, key),
                )
            )
        lines.append(
            NumberLine(
                series_of(scene, point.method), swatch_of(scene, point.method), point.method, tuple(cells)
            )
        )
    return heads, tuple(lines)


def _key(point: Point, column: str) -> float:
    spread = point.values.get(column)
    return spread.mean if spread is not None and spread.finite else float("-inf")


def layer_view(table: LayerTable) -> LayerView:
    """The per-layer table in words."""
    methods = tuple(table.at)
    return LayerView(
        asked=times(table.asked),
        methods=tuple(f"{m} ({times(table.at[m].ratio)})" for m in methods),
        lines=tuple(
            (
                layer.name,
                layer.shape,
                count(layer.parameters),
                tuple(_removed(table.sparsity[layer.name].get(m)) for m in methods),
            )
            for layer in table.layers
        ),
    )


def _removed(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"
