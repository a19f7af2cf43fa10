"""HTML pages of a study and of a study suite, with their plots."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prunekit.digests import SUMS
from prunekit.report.best import ABOVE, Best, best_table, max_compression_within_tolerance
from prunekit.report.curves import PlotData, curve_drawings
from prunekit.report.findings import Finding, Overview, findings, study_overview
from prunekit.report.heat_map import heat_drawing, layer_table
from prunekit.report.layers import multiples_drawing, unit_drawings
from prunekit.report.points import (
    Point,
    Primary,
    Spread,
    count,
    fewer,
    judged,
    layer_points_of,
    names,
    percent_spread,
    plain_spread,
    points_of,
    primary_of,
    times,
    times_of,
    under_way,
)
from prunekit.report.read_tables import check_tables, read_layers, read_results, require_filled
from prunekit.report.style import inline, save, write_atomically
from prunekit.study_files import (
    DENSE,
    LAYERS_CSV,
    REPORT_HTML,
    RESULTS_CSV,
    STUDY_JSON,
    SUITE_JSON,
    StudyFile,
    SuiteFile,
    read_description,
    read_study,
    refuse_links,
)

log = logging.getLogger(__name__)


class Column(NamedTuple):
    """A column of the table of all numbers: what of a point's values it holds, and how it is written."""

    key: str
    head: str
    show: Callable[[Spread | None], str]


def number_columns(points: Sequence[Point], primary: Primary) -> list[Column]:
    """The columns that some point fills."""
    show = percent_spread if primary.higher_is_better else plain_spread
    columns = (
        Column(primary.validation, primary.validation.replace("_", " "), show),
        Column(primary.test, primary.test.replace("_", " "), show),
        Column("test_top5", "test top-5", percent_spread),
        Column("test_loss", "test loss", plain_spread),
        Column("macs_nonzero", "MACs left", lambda macs: count(macs.mean if macs else None)),
        Column("bytes", "bytes", lambda size: count(size.mean if size else None)),
        Column("packed_bytes", "packed file", lambda size: count(size.mean if size else None)),
        Column("seconds", "seconds", lambda seconds: f"{seconds.mean:.1f}" if seconds else "–"),
    )
    filled = {key for point in points for key in point.values}
    return [column for column in columns if column.key in filled]


def explain(best: Best, primary: Primary) -> str:
    """What stands beside the verdict: by how much, or which other methods."""
    few = best.rivals[:2] if len(best.rivals) > 3 else best.rivals
    more = [f"{len(best.rivals) - len(few)} more"] if len(few) < len(best.rivals) else []
    rivals = names([*few, *more])
    if best.verdict == "ahead" and best.runner_up is not None:
        theirs = best.runner_up.values[primary.test].mean
        return f"of all there, by {primary.gap(best.test(primary).mean - theirs, theirs)}"
    return {"within the spread": f"of {rivals}", "behind on test": f"{rivals} better"}.get(best.verdict, "")


@cache
def _environment() -> Environment:
    """Which keeps the templates that it has compiled."""
    return Environment(
        loader=PackageLoader("prunekit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """A page as text. It asks for nothing outside itself: its content policy forbids it."""
    return _environment().get_template(template).render(style=Markup(_part("templates/report.css")), **values)


def _part(name: str) -> str:
    return files("prunekit.report").joinpath(name).read_text(encoding="utf-8")


def _scripts() -> dict[str, str]:
    """The scripts of a report, each with the digest by which the content policy allows it."""
    library = f"/*\n{_part('vendor/uplot/LICENSE')}*/\n{_part('vendor/uplot/uPlot.iife.min.js')}"
    scripts = [library, _part("templates/charts.js"), _part("templates/tables.js")]
    return {each: base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts}


def write_report(folder: Path) -> Path:
    """Read results.csv, layers.csv and study.json in ``folder``; write figures/ and report.html there.

    Figures are written as SVG and PNG; the page holds all it needs, and the same files give the same page.
    Returns the path of the page. Raises DataError, naming file and line, for files that are missing, damaged
    or do not belong together, and for links; then nothing is written.
    """
    refuse_links(folder)
    study = read_study(folder / STUDY_JSON)
    checked = check_tables(folder)
    rows = read_results(folder / RESULTS_CSV)
    layer_rows = read_layers(folder / LAYERS_CSV)
    primary = primary_of(study.primary)
    require_filled(folder / RESULTS_CSV, rows, (primary.test, primary.validation))
    if not checked:
        log.warning("%s has no %s: whether its tables are as they were written is not known", folder, SUMS)

    measured, layer_points = points_of(rows), layer_points_of(layer_rows)
    points = judged(study, measured)
    passed = under_way(study, measured)
    data = PlotData(tuple(points), study.controls.random, study.control_of)
    table = layer_table(points, layer_points, primary)
    curves = curve_drawings(data, primary)
    multiples = multiples_drawing(measured, layer_points, data.methods)
    layers = [] if multiples is None else [multiples]
    units = unit_drawings(folder, study, data, primary)
    # trusted markup: matplotlib escapes the texts in it
    svg = {
        drawing.name: Markup(inline(save(drawing, folder / "figures"), drawing))
        for drawing in (*curves, *layers, *units)
    }
    bests = best_table(points, primary)
    if table is not None:  # the page has it as a table
        save(heat_drawing(table), folder / "figures")
    held = {m: max_compression_within_tolerance(points, m, primary) for m in data.methods}
    page = render(
        "report.html.j2",
        study=study,
        row=rows[0],
        data=data,
        primary=primary,
        dense=data.dense.values.get(primary.test),
        dense_label=DENSE,
        dense_summary=_dense_summary(study),
        labels=(DENSE, *data.methods),
        pruning=[method for method in data.methods if method not in data.unpruned],
        found=findings(study, measured, primary, layer_points),
        held=held,
        furthest=max((point.ratio for point in held.values() if point), default=1.0),
        bests=bests,
        asked=[times(best.asked) for best in bests],
        table=table,
        measured=measured,
        passed=passed,
        shown=fewer(measured),
        columns=number_columns(measured, primary),
        curves=curves,
        layers=layers,
        units=units,
        svg=svg,
        # heat maps of many cells are pictures inside of their SVG, which the policy must allow
        has_pictures=any("<image " in each for each in svg.values()),
        charts={
            "reach": ABOVE,
            "figures": [
                {"name": drawing.name, "charts": [chart.to_dict() for chart in drawing.charts]}
                for drawing in (*curves, *layers, *units)
                if drawing.charts
            ],
        },
        chart_style=Markup(_part("vendor/uplot/uPlot.min.css")),
        scripts={Markup(text): digest for text, digest in _scripts().items()},
        above=ABOVE,
        count=count,
        times=times,
        times_of=times_of,
        names=names,
        explain=explain,
        yaml=_yaml,
    )
    target = folder / REPORT_HTML
    write_atomically(target, page.encode())
    return target


def _dense_summary(study: StudyFile) -> str:
    label = study.controls.dense_trained_as_long
    if not study.begins_untrained:
        return "The network before pruning."
    if label is None:
        return "The network before pruning, which is not trained."
    return (
        f"The network of {label}, since the one before pruning is not trained. {study.methods[label].summary}"
    )


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100).rstrip()


def is_suite(folder: Path) -> bool:
    """Whether the folder holds the studies of a suite, and no study itself."""
    return (folder / SUITE_JSON).is_file()


def read_suite(folder: Path) -> SuiteFile:
    """What suite.json says. Raises DataError, naming the file and the place, if it is damaged, or a link."""
    refuse_links(folder)
    found = read_description(folder / SUITE_JSON, SuiteFile)
    refuse_links(folder, found.variants)
    return found


def write_suite_reports(folder: Path) -> Path:
    """The reports of all studies of a suite anew, and its page. Raises DataError, as `write_report`."""
    for label in read_suite(folder).variants:
        write_report(folder / label)
    return write_suite_page(folder)


def write_suite_page(folder: Path) -> Path:
    """The page that leads to the reports of the studies. Returns its path. Raises DataError."""
    suite, found = _read_overviews(folder)
    target = folder / REPORT_HTML
    write_atomically(target, render("suite.html.j2", suite=suite, found=found).encode())
    return target


def overview(folder: Path) -> Overview:
    """What the report in a folder finds: that of a study, or of all studies of a suite, by variant.

    Raises:
        DataError: as `write_report`.
    """
    if not is_suite(folder):
        return study_overview(folder)
    suite, found = _read_overviews(folder)
    return Overview(
        suite.title,
        tuple(Finding(f"{label}: {each.marked}") for label, one in found.items() for each in one.findings),
        tuple(Finding(f"{label}: {each.marked}") for label, one in found.items() for each in one.cautions),
    )


def _read_overviews(folder: Path) -> tuple[SuiteFile, dict[str, Overview]]:
    suite = read_suite(folder)
    return suite, {label: study_overview(folder / label) for label in suite.variants}
