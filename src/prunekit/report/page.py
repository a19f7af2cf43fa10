"""write_report: a study's folder in, figures and one HTML page out."""

import logging
from pathlib import Path

from prunekit.digests import SUMS
from prunekit.links import refuse_links
from prunekit.report.canvas import Drawing, inline, save, write_atomically
from prunekit.report.figures import Scene, curve_drawings
from prunekit.report.html import Figure, render
from prunekit.report.layer_figures import heat_drawing, multiples_drawing
from prunekit.report.layers import layer_table
from prunekit.report.points import layer_points_of, methods_of, points_of, removes_nothing
from prunekit.report.studyfile import read_study
from prunekit.report.style import looks_of
from prunekit.report.table import check_tables, read_layers, read_results, require_filled
from prunekit.report.view import view_of
from prunekit.report.words import primary_of

log = logging.getLogger(__name__)


def write_report(folder: Path) -> Path:
    """Read results.csv, layers.csv and study.json in ``folder``; write figures/ and report.html there.

    Figures are written as SVG and PNG; the page holds all it needs, and the same files give the same page.
    Returns the path of the page. Raises DataError, naming file and line, for files that are missing, damaged
    or do not belong together, and for links; then nothing is written.
    """
    refuse_links(folder)
    study = read_study(folder / "study.json")
    checked = check_tables(folder)
    rows = read_results(folder / "results.csv")
    layer_rows = read_layers(folder / "layers.csv")
    primary = primary_of(study.primary)
    require_filled(folder / "results.csv", rows, (primary.test, primary.validation))
    if not checked:
        log.warning("%s has no %s: whether its tables are as they were written is not known", folder, SUMS)

    points, layer_points = points_of(rows), layer_points_of(layer_rows)
    methods = methods_of(points)
    flat = [method for method in methods if removes_nothing(points, method)]
    looks = looks_of(methods, study.controls.random, flat)
    scene = Scene(tuple(points), tuple(methods), looks, study.controls.random)
    table = layer_table(points, layer_points, primary)

    curves = curve_drawings(scene, primary)
    layers = [multiples_drawing(points, layer_points, methods), heat_drawing(table) if table else None]
    view = view_of(study, rows, scene, primary, table)
    page = render(
        view,
        curves=[_saved(drawing, folder) for drawing in curves],
        layers=[_saved(drawing, folder) for drawing in layers if drawing is not None],
    )
    target = folder / "report.html"
    write_atomically(target, page.encode())
    return target


def _saved(drawing: Drawing, folder: Path) -> Figure:
    svg = save(drawing, folder / "figures")
    return Figure(drawing.name, drawing.title, drawing.caption, inline(svg, drawing), drawing.first)
