"""Text of a study's page, ready to print: the numbers said, in the order of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from prunekit.report.best import ABOVE, Best, best_table, max_compression_within_tolerance
from prunekit.report.curves import PlotData
from prunekit.report.findings import Finding, findings
from prunekit.report.format import (
    Primary,
    count,
    names,
    overlap,
    percent_spread,
    plain_spread,
    times,
)
from prunekit.report.layers import LayerTable
from prunekit.report.points import Point, fewer, removes_nothing
from prunekit.report.study_files import DENSE, Row, StudyFile
from prunekit.report.style import DENSE_LOOK, INK


@dataclass(frozen=True, slots=True)
class Swatch:
    """A method's colour and dash, as in the figures; dense is written in the colour of the text."""

    color: str
    dash: str


@dataclass(frozen=True, slots=True)
class TableCell:
    """A table cell: what is read, and the number to sort by."""

    text: str
    key: float


@dataclass(frozen=True, slots=True)
class NumberLine:
    """One line of the full numbers."""

    series: int
    swatch: Swatch
    method: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True, slots=True)
class LayerTexts:
    """The per-layer table: a column per method; ``lines`` hold name, shape, weights and a text per method."""

    asked: str
    methods: tuple[str, ...]
    lines: tuple[tuple[str, str, str, tuple[str, ...]], ...]


def swatch_of(data: PlotData, method: str) -> Swatch:
    """How a method is marked in a table."""
    look = data.looks.get(method, DENSE_LOOK)
    # Ink would vanish on a dark page.
    return Swatch("currentColor" if look.color == INK else look.color, look.dasharray)


def series_of(data: PlotData, method: str) -> int:
    """The number of a method in the figures, -1 for dense."""
    return data.methods.index(method) if method in data.methods else -1


def number_lines(data: PlotData, primary: Primary) -> tuple[tuple[str, ...], tuple[NumberLine, ...]]:
    """Heads and lines of the table of points; columns that no point fills are left out."""
    points = data.points
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
            TableCell(str(point.step), point.step),
            TableCell(str(point.seeds), point.seeds),
            TableCell(f"{100 * point.sparsity:.1f}%", point.sparsity),
            TableCell(f"{point.ratio:.2f}x", point.ratio),
            TableCell(count(point.values["kept"].mean), point.values["kept"].mean),
        ]
        cells += [TableCell(say(point.values.get(key)), _key(point, key)) for key, _, say in quality]
        for key, _ in sizes:
            value = point.values[key].mean if key in point.values else None
            cells.append(
                TableCell(
                    f"{value:.1f}" if key == "seconds" and value is not None else count(value),
                    _key(point, key),
                )
            )
        lines.append(
            NumberLine(
                series_of(data, point.method), swatch_of(data, point.method), point.method, tuple(cells)
            )
        )
    return heads, tuple(lines)


def _key(point: Point, column: str) -> float:
    spread = point.values.get(column)
    return spread.mean if spread is not None and spread.finite else float("-inf")


def layer_texts(table: LayerTable) -> LayerTexts:
    """The per-layer table in words."""
    methods = tuple(table.at)
    return LayerTexts(
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


@dataclass(frozen=True, slots=True)
class MethodLine:
    """One line of 'what was compared'. ``series`` is the method's number in the figures (-1: dense)."""

    series: int
    swatch: Swatch
    label: str
    control: str
    paper: str
    summary: str
    max_compression: str
    max_compression_share: float


@dataclass(frozen=True, slots=True)
class BestLine:
    """One line of 'best at each compression'; ``mark`` is a word for the style sheet."""

    asked: str
    candidates: str
    series: int
    swatch: Swatch
    method: str
    ratio: str
    validation: str
    test: str
    change: str
    change_note: str
    runner_up: str
    runner_up_test: str
    verdict: str
    detail: str
    mark: str


@dataclass(frozen=True, slots=True)
class PageData:
    """All texts of the page."""

    study: StudyFile
    facts: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    methods: tuple[MethodLine, ...]
    margin: str
    change_head: str
    curves_note: str
    best: tuple[BestLine, ...]
    best_note: str
    layers: LayerTexts | None
    number_heads: tuple[str, ...]
    numbers: tuple[NumberLine, ...]
    points: int
    settings: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]


def page_data_of(
    study: StudyFile, rows: Sequence[Row], data: PlotData, primary: Primary, table: LayerTable | None
) -> PageData:
    """Put the study into words."""
    points = data.points
    dense = data.dense.values[primary.test]
    heads, lines = number_lines(data, primary)
    return PageData(
        study=study,
        facts=_facts(study, rows[0], data, primary),
        findings=tuple(findings(study, points, primary)),
        methods=_methods(study, data, primary),
        margin=primary.format_tolerance(dense),
        change_head="Against dense, points" if primary.higher_is_better else "Against dense",
        curves_note=_curves_note(data),
        best=tuple(_best(best, data, primary) for best in best_table(points, primary)),
        best_note=_best_note(primary),
        layers=layer_texts(table) if table else None,
        number_heads=heads,
        numbers=lines,
        points=len(points),
        settings=_settings(study),
        environment=tuple((key, str(value)) for key, value in study.environment.items()),
    )


def _facts(study: StudyFile, row: Row, data: PlotData, primary: Primary) -> tuple[tuple[str, str], ...]:
    dense = data.dense
    pruned = [m for m in data.methods if m != data.random and not removes_nothing(data.points, m)]
    return (
        ("dataset", row.dataset),
        ("model", row.model),
        ("prunable weights", count(row.prunable)),
        ("methods", str(len(pruned))),
        ("seeds", f"{dense.seeds}{', each with its own split' * (study.splits == 'per_seed')}"),
        (f"dense {primary.name}", primary.show_spread(dense.values[primary.test])),
    )


def _methods(study: StudyFile, data: PlotData, primary: Primary) -> tuple[MethodLine, ...]:
    reached = {m: max_compression_within_tolerance(data.points, m, primary) for m in data.methods}
    most = max((point.ratio for point in reached.values() if point), default=1.0)
    lines = []
    for method in (DENSE, *data.methods):
        note = study.methods.get(method)
        point = reached.get(method)
        flat = method == DENSE or removes_nothing(data.points, method)
        control = "control" if method == data.random or (flat and method != DENSE) else ""
        summary = note.summary if note else "The network before pruning." if method == DENSE else ""
        lines.append(
            MethodLine(
                series=series_of(data, method),
                swatch=swatch_of(data, method),
                label=method,
                control="reference" if method == DENSE else control,
                paper=note.paper if note else "",
                summary=summary,
                max_compression=times(point.ratio) if point else "" if flat else "–",
                max_compression_share=point.ratio / most if point else 0.0,
            )
        )
    return tuple(lines)


_MARKS = {"ahead": "good", "behind on test": "bad"}


def _best(best: Best, data: PlotData, primary: Primary) -> BestLine:
    test, dense = best.test(primary), data.dense.values[primary.test]
    touches = overlap(test, dense)
    runner = best.runner_up
    few = best.rivals[:2] if len(best.rivals) > 3 else best.rivals
    more = [f"{len(best.rivals) - len(few)} more"] if len(few) < len(best.rivals) else []
    rivals = names([*few, *more])
    detail = {"within the spread": f"of {rivals}", "behind on test": f"{rivals} better"}.get(best.verdict, "")
    if best.verdict == "ahead" and runner is not None:
        theirs = runner.values[primary.test].mean
        detail = f"of all there, by {primary.gap(test.mean - theirs, theirs)}"
    pruned = [m for m in data.methods if not removes_nothing(data.points, m)]
    return BestLine(
        asked=times(best.asked),
        candidates=f"{best.candidates} of {len(pruned)} methods",
        series=series_of(data, best.point.method),
        swatch=swatch_of(data, best.point.method),
        method=best.point.method,
        ratio=f"{best.point.ratio:.2f}x",
        validation=primary.show_spread(best.point.values[primary.validation]),
        test=primary.show_spread(test),
        change=primary.change(test.mean, dense.mean),
        change_note="within the spread" if touches else "",
        runner_up=runner.method if runner else "–",
        runner_up_test=primary.show_spread(runner.values[primary.test]) if runner else "",
        verdict=best.verdict,
        detail=detail,
        mark=_MARKS.get(best.verdict, "open"),
    )


def _curves_note(data: PlotData) -> str:
    text = "Lines are means over seeds, with one sample standard deviation as a band or a vertical bar. "
    text += "The black line is the dense network"
    if any(removes_nothing(data.points, m) for m in data.methods):
        text += ", a dotted one a control from which nothing was removed"
    return text + (", the grey dashes removal at random." if data.random in data.methods else ".")


def _best_note(primary: Primary) -> str:
    return (
        f"At each compression a method is represented by its point of the smallest ratio at or above it (up "
        f"to {ABOVE:g} times). The method is chosen by its mean on validation data; its metric on test data "
        f"is then reported, so that the choice cannot flatter itself. It is called ahead only if mean ± one "
        f"standard deviation of its {primary.name} is clear of that of every other method "
        "with a point there or further on."
    )


def _settings(study: StudyFile) -> tuple[tuple[str, str], ...]:
    """Blocks of YAML: the study's own settings, then each method's recipe."""
    parts: list[tuple[str, Any]] = [
        ("dataset", study.dataset),
        ("model", study.model),
        ("training", study.training),
        *((label, note.recipe) for label, note in study.methods.items()),
    ]
    return tuple((label, _yaml(value)) for label, value in parts)


def _yaml(value: Mapping[str, Any] | list[dict[str, Any]]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()
