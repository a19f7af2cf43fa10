"""HTML pages of a study and of a study suite, with their plots."""

from __future__ import annotations

import base64
import hashlib
import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prunekit.digests import SUMS
from prunekit.files import refuse_links
from prunekit.limits import check_folder_name
from prunekit.report.curves import PlotData, curve_drawings
from prunekit.report.findings import Overview, study_overview
from prunekit.report.format import primary_of
from prunekit.report.layers import heat_drawing, layer_table, multiples_drawing
from prunekit.report.page_data import PageData, page_data_of
from prunekit.report.points import layer_points_of, methods_of, points_of, removes_nothing
from prunekit.report.study_files import (
    check_tables,
    read_description,
    read_layers,
    read_results,
    read_study,
    require_filled,
)
from prunekit.report.style import Drawing, inline, looks_of, save, write_atomically
from prunekit.report.unit_figures import unit_drawings

log = logging.getLogger(__name__)

SUITE = "suite.json"


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure on the page; ``svg`` is trusted markup, made by matplotlib, which escapes its texts.

    Figures that are not ``first`` are folded away until asked for.
    """

    name: str
    title: str
    caption: str
    svg: str
    first: bool = True

    @property
    def markup(self) -> Markup:
        """The SVG as markup that is not escaped again."""
        return Markup(self.svg)


def render(data: PageData, curves: list[Figure], layers: list[Figure], units: list[Figure]) -> str:
    """The whole page as text. It asks for nothing outside itself: its content policy forbids it.

    Heat maps of many cells are pictures inside of their SVG: where there are some, the policy allows pictures
    that are written out in the page.
    """
    script = _part("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=data,
            curves=curves,
            layers=layers,
            units=units,
            style=Markup(_part("report.css")),
            script=Markup(script),
            script_digest=digest,
            has_pictures=any("<image " in figure.svg for figure in (*curves, *layers, *units)),
        )
    )


def render_suite(suite: dict[str, Any], found: list[tuple[str, Overview]]) -> str:
    """The page of a suite: its words, and what was found for each variant."""
    return (
        _environment()
        .get_template("suite.html.j2")
        .render(suite=suite, found=found, style=Markup(_part("report.css")))
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("prunekit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _part(name: str) -> str:
    return files("prunekit.report").joinpath("templates", name).read_text(encoding="utf-8")


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
    data = PlotData(tuple(points), tuple(methods), looks, study.controls.random)
    table = layer_table(points, layer_points, primary)

    curves = curve_drawings(data, primary)
    layers = [multiples_drawing(points, layer_points, methods), heat_drawing(table) if table else None]
    units = unit_drawings(folder, study, data, primary)
    page = render(
        page_data_of(study, rows, data, primary, table),
        curves=[_saved(drawing, folder) for drawing in curves],
        layers=[_saved(drawing, folder) for drawing in layers if drawing is not None],
        units=[_saved(drawing, folder) for drawing in units],
    )
    target = folder / "report.html"
    write_atomically(target, page.encode())
    return target


def _saved(drawing: Drawing, folder: Path) -> Figure:
    svg = save(drawing, folder / "figures")
    return Figure(drawing.name, drawing.title, drawing.caption, inline(svg, drawing), drawing.first)


class SuiteFile(BaseModel):
    """suite.json, checked."""

    model_config = ConfigDict(frozen=True)
    format: int
    name: str
    title: str
    question: str
    expected: str
    variants: tuple[Annotated[str, AfterValidator(check_folder_name)], ...] = Field(min_length=1)
    command: str


def is_suite(folder: Path) -> bool:
    """Whether the folder holds the studies of a suite, and no study itself."""
    return (folder / SUITE).is_file()


def read_suite(folder: Path) -> SuiteFile:
    """What suite.json says. Raises DataError, naming the file and the place, if it is damaged, or a link."""
    refuse_links(folder)
    found = read_description(folder / SUITE, SuiteFile)
    refuse_links(folder, found.variants)
    return found


def write_suite_reports(folder: Path) -> Path:
    """The reports of all studies of a suite anew, and its page. Raises DataError, as `write_report`."""
    for label in read_suite(folder).variants:
        write_report(folder / label)
    return write_suite_page(folder)


def write_suite_page(folder: Path) -> Path:
    """The page that leads to the reports of the studies. Returns its path. Raises DataError."""
    suite = read_suite(folder)
    found = [(label, study_overview(folder / label)) for label in suite.variants]
    target = folder / "report.html"
    write_atomically(target, render_suite(suite.model_dump(), found).encode())
    return target


def overview(folder: Path) -> Overview:
    """What the report in a folder finds: that of a study, or of all studies of a suite, by variant.

    Raises:
        DataError: as `write_report`.
    """
    if not is_suite(folder):
        return study_overview(folder)
    suite = read_suite(folder)
    found = [(label, study_overview(folder / label)) for label in suite.variants]
    return Overview(
        suite.title,
        tuple(f"{label}: {text}" for label, one in found for text in one.findings),
        tuple(f"{label}: {text}" for label, one in found for text in one.cautions),
    )
