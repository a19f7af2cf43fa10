"""The data of interactive charts against the tables, read by the csv module."""

import base64
import csv
import hashlib
import json
import re
import statistics
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from report_fixture import Method, make_study

from prunekit.report import write_report
from prunekit.report.heat_map import HeatCell, LayerTable, percent_removed
from prunekit.report.points import LayerPoint
from prunekit.report.style import PALETTE
from prunekit.report.theme import (
    DARK,
    DARK_CARD,
    THEME,
    contrast,
    for_both_themes,
    lightened,
    of_page,
    themed,
)

HOSTILE = "</script><b>x & 'y'"
VENDORED = files("prunekit.report") / "vendor" / "uplot"


class Scripts(HTMLParser):
    """The scripts of a page as a browser takes them apart, with their types."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.inside = False
        self.policy = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        self.inside = tag == "script"
        if self.inside:
            self.found.append((values.get("type") or "", ""))

    def handle_data(self, data: str) -> None:
        if self.inside:
            kind, text = self.found[-1]
            self.found[-1] = kind, text + data

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def charts_of(page: Path) -> dict[str, list[dict[str, Any]]]:
    found = Scripts(page.read_text(encoding="utf-8")).found
    (text,) = (text for kind, text in found if kind == "application/json")
    return {figure["name"]: figure["charts"] for figure in json.loads(text)["figures"]}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods = {"a": Method(20, (2, 8, 30)), HOSTILE: Method(9, (2, 8)), "random": Method(5, (2, 8, 30))}
    folder = make_study(tmp_path_factory.mktemp("charts"), methods)
    write_report(folder)
    return folder


def test_curves_are_the_means_and_spreads_of_the_tables(study: Path) -> None:
    (chart,) = charts_of(study / "report.html")["accuracy-ratio"]
    rows = rows_of(study / "results.csv")
    assert [curve["name"] for curve in chart["curves"]] == ["a", HOSTILE, "random"]
    for curve in chart["curves"]:
        steps = sorted({int(row["step"]) for row in rows if row["method"] == curve["name"]})
        assert len(curve["x"]) == len(steps)
        for place, step in enumerate(steps):
            of = [row for row in rows if row["method"] == curve["name"] and int(row["step"]) == step]
            assert len(of) == 3
            tests = [100 * float(row["test_accuracy"]) for row in of]
            mean, sd = statistics.mean(tests), statistics.stdev(tests)
            ratio = statistics.mean(float(row["compression_ratio"]) for row in of)
            assert curve["y"][place] == pytest.approx(mean, rel=1e-7)
            assert curve["sd"][place] == pytest.approx(sd, rel=1e-6)
            assert curve["x"][place] == pytest.approx(ratio, rel=1e-7)
            removed = statistics.mean(float(row["sparsity"]) for row in of)
            assert curve["sparsity"][place] == pytest.approx(removed, rel=1e-7)
            assert curve["values"][place] == f"{mean:.2f} ± {sd:.2f}%"
    dense = [100 * float(row["test_accuracy"]) for row in rows if row["method"] == "dense"]
    level = chart["levels"][0]
    assert (level["name"], level["y"]) == ("dense", pytest.approx(statistics.mean(dense), rel=1e-7))
    assert level["sd"] == pytest.approx(statistics.stdev(dense), rel=1e-6)
    assert chart["levels"][1]["name"] == "dense, trained as long"
    assert chart["levels"][1]["sd"] == 0  # no band, as in the figure; its text has the spread
    assert "±" in chart["levels"][1]["value"]


def test_a_panel_has_the_layers_of_its_method(study: Path) -> None:
    charts = charts_of(study / "report.html")["layers-sparsity"]
    rows = rows_of(study / "layers.csv")
    assert [chart["method"] for chart in charts] == ["a", HOSTILE, "random"]
    for chart in charts:
        own = [row for row in rows if row["method"] == chart["method"]]
        assert [curve["name"] for curve in chart["curves"]] == list(
            dict.fromkeys(row["layer"] for row in own)
        )
        for curve in chart["curves"]:
            for place, step in enumerate(sorted({int(row["step"]) for row in own})):
                found = [
                    100 * float(row["sparsity"])
                    for row in own
                    if row["layer"] == curve["name"] and int(row["step"]) == step
                ]
                assert curve["y"][place] == pytest.approx(statistics.mean(found), rel=1e-7)


def test_every_chart_has_its_figure_and_ticks_within_its_limits(study: Path) -> None:
    found = charts_of(study / "report.html")
    assert set(found) == {path.stem for path in (study / "figures").glob("*.svg")} - {"layers-methods"}
    for chart in (chart for charts in found.values() for chart in charts):
        for axis in (chart["x"], chart["y"]):
            assert len(axis["ticks"]) >= 2
            assert all(axis["low"] <= value <= axis["high"] for value, _ in axis["ticks"])
            assert axis["log"] is False or axis["low"] > 0
    assert found["error-ratio"][0]["x"]["log"]
    assert found["error-ratio"][0]["y"]["log"]
    assert [text for _, text in found["accuracy-ratio"][0]["x"]["ticks"]] == ["1x", "2x", "5x", "10x", "20x"]


def test_no_name_ends_the_script_that_holds_it(study: Path) -> None:
    text = (study / "report.html").read_text(encoding="utf-8")
    scripts = Scripts(text)
    assert [kind for kind, _ in scripts.found] == ["application/json", "", "", ""]
    assert "<b>x" not in text


def test_the_content_policy_allows_the_scripts_by_their_digests_and_no_others(study: Path) -> None:
    scripts = Scripts((study / "report.html").read_text(encoding="utf-8"))
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in scripts.found
        if not kind
    ]
    assert re.findall(r"script-src ([^;]+)", scripts.policy) == [" ".join(digests)]


def test_uplot_is_as_published_and_comes_with_its_licence(study: Path) -> None:
    sums = dict(reversed(line.split()) for line in (VENDORED / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {"LICENSE", "uPlot.iife.min.js", "uPlot.min.css"}
    for name, digest in sums.items():
        assert hashlib.sha256((VENDORED / name).read_bytes()).hexdigest() == digest
    (version,) = re.findall(r"uPlot (\d+\.\d+\.\d+)", (VENDORED / "README.md").read_text())
    assert f"(v{version})" in (VENDORED / "uPlot.iife.min.js").read_text()[:200]
    page = (study / "report.html").read_text(encoding="utf-8")
    assert (VENDORED / "LICENSE").read_text() in page


def test_lines_are_seen_on_dark_paper() -> None:
    style = (files("prunekit.report") / "templates" / "report.css").read_text()
    assert f"--card: {DARK_CARD}" in style
    shades = [
        matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](place)) for place in (0, 0.2, 0.5, 0.8)
    ]
    for color in (*PALETTE, *shades, "#000000"):
        assert contrast(lightened(color), DARK_CARD) >= 3
    assert lightened("#ffffff") == "#ffffff"
    assert contrast("#000000", "#ffffff") == pytest.approx(21)  # by definition
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.01)  # a well-known grey
    assert of_page("#440154").startswith("light-dark(#440154, #")
    assert themed("fill: #440154; stroke: #440154").startswith("fill: #440154; stroke: light-dark(")
    assert themed("fill: #1d2129") == "fill: var(--ink)"


def test_a_file_of_its_own_has_the_colours_of_the_page_where_the_theme_is_dark() -> None:
    plain = '<style>*{}</style><path style="fill: #ffffff"/><path style="stroke: #440154; fill: #440154"/>'
    both = for_both_themes(plain)
    rules = both[both.index("@media") : both.index("</style>")]
    assert plain == both.replace(rules, "")
    assert f'[style*="fill: #ffffff"]{{fill:{DARK_CARD} !important}}' in rules
    assert f'[style*="stroke: #440154"]{{stroke:{lightened("#440154")} !important}}' in rules
    assert "fill: #440154" not in rules
    sheet = (files("prunekit.report") / "templates" / "report.css").read_text()
    assert all(f"--{THEME[color]}: {dark}" in sheet for color, dark in DARK.items())


def test_numbers_on_the_heat_map_are_read_in_every_theme() -> None:
    layer = LayerPoint("a", "c", 1, "fc", "4x4", 16, 0.0)
    for percent in range(101):
        table = LayerTable(2.0, (layer,), {}, {"fc": {"a": percent / 100, "b": 0.1}})
        cell = table.cell("fc", "a")
        assert contrast(cell.ink, cell.paper) >= 4.5
        assert table.cell("fc", "c") == HeatCell("–", "#dfe2e8", "#000000")
    assert [percent_removed(x) for x in (0.0, 0.8321, 0.9994, 0.99951, 1.0)] == [
        "0.0",
        "83.2",
        "99.9",
        ">99.9",
        "100",
    ]
