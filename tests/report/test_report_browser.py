"""The report in a real browser; skipped where there is none."""

import csv
import math
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_fixture import Method, make_study
from test_report_charts import charts_of

from prunekit.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra dev, is not installed")

HOSTILE = "</script><b>x"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = str(own) if own.exists() else next(filter(None, map(shutil.which, BROWSERS)), None)
        if found is None:
            pytest.skip("no Chromium: `playwright install chromium`, or the package of the system")
        # in a container of continuous integration everything runs as root, for whom there is no sandbox
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods = {
        "a": Method(20, (2, 8, 30)),
        "b, of other ratios": Method(12, (3, 9)),
        HOSTILE: Method(9, (2, 8)),
        "random": Method(5, (2, 8, 30)),
    }
    folder = make_study(tmp_path_factory.mktemp("browser"), methods)
    write_report(folder)
    return folder


class Opened:
    """A report in a page of the browser, with what the console said."""

    def __init__(self, page: "sync_api.Page", study: Path) -> None:
        self.page = page
        self.said: list[str] = []
        page.on("console", self.hear)
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.goto((study / "report.html").as_uri())

    def hear(self, message: "sync_api.ConsoleMessage") -> None:
        if "willReadFrequently" not in message.text:  # which the test itself is told, for reading pixels
            self.said.append(f"{message.type}: {message.text}")

    def chart(self, figure: str) -> "sync_api.Locator":
        return self.page.locator(f"#{figure} .plot").first

    def read(self, figure: str) -> dict[str, tuple[str, str]]:
        """The values and places in the legend of a figure, by name."""
        return {
            entry.locator(".name").inner_text(): (
                entry.locator(".value").inner_text(),
                entry.locator(".place").inner_text(),
            )
            for entry in self.page.locator(f"#{figure} .entry").all()
        }

    def settle(self) -> None:
        """Wait for what was done to be drawn."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def point(self, x: float, y: float) -> None:
        self.page.mouse.move(x, y)
        self.settle()

    def line(self, figure: str, panel: int = 0) -> float | None:
        """Where the line stands in a chart, as a share of its width; None where it is not shown."""
        return (
            self.page.locator(f"#{figure} .u-cursor-x")
            .nth(panel)
            .evaluate(
                """line => line.classList.contains("u-off") ? null
                : (line.getBoundingClientRect().x - line.parentNode.getBoundingClientRect().x)
                    / line.parentNode.getBoundingClientRect().width"""
            )
        )

    def drawn(self, figure: str, color: str) -> int:
        """How many pixels of a chart have this colour."""
        rgb = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        return self.page.locator(f"#{figure} canvas").first.evaluate(
            """(canvas, rgb) => {
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                let found = 0;
                for (let at = 0; at < data.length; at += 4) {
                    if (data[at + 3] === 255 && rgb.every((part, k) => data[at + k] === part)) found += 1;
                }
                return found;
            }""",
            rgb,
        )


@pytest.fixture
def opened(browser: "sync_api.Browser", study: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    found = Opened(context.new_page(), study)
    found.page.wait_for_selector("#accuracy-ratio canvas")
    yield found
    context.close()


def table(study: Path) -> dict[tuple[str, int], tuple[str, float, float]]:
    """By method and step: the accuracy as a reader should see it, the ratio, and the percentage removed."""
    with (study / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for method, step in {(row["method"], row["step"]) for row in rows}:
        of = [row for row in rows if (row["method"], row["step"]) == (method, step)]
        tests = [100 * float(row["test_accuracy"]) for row in of]
        found[method, int(step)] = (
            f"{statistics.mean(tests):.2f} ± {statistics.stdev(tests):.2f}%",
            statistics.mean(float(row["compression_ratio"]) for row in of),
            100 * statistics.mean(float(row["sparsity"]) for row in of),
        )
    return found


def share_of(axis: dict, value: float) -> float:
    low, high = axis["low"], axis["high"]
    if axis["log"]:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def test_values_read_off_by_keys_and_pointer_are_those_of_the_table(opened: Opened, study: Path) -> None:
    known = table(study)
    opened.chart("accuracy-ratio").focus()
    seen = set()
    opened.page.keyboard.press("Home")
    for _ in range(12):
        for name, (value, place) in opened.read("accuracy-ratio").items():
            if not place:
                continue
            run = {f"at {ratio:.2g}x": text for (of, _), (text, ratio, _) in known.items() if of == name}
            assert run[place] == value, name
            seen.add((name, place))
        opened.page.keyboard.press("ArrowRight")
    pruned = [key for key in known if not key[0].startswith("dense")]
    assert len(seen) == len(pruned) == 10
    assert opened.read("accuracy-ratio")["dense"] == (known["dense", 0][0], "")

    opened.page.keyboard.press("Escape")
    assert opened.read("accuracy-ratio")["a"] == ("", "")
    (chart,) = charts_of(study / "report.html")["accuracy-ratio"]
    area = opened.page.locator("#accuracy-ratio .u-over").bounding_box()
    assert area is not None
    left = area["x"] + area["width"] * share_of(chart["x"], known["a", 2][1])
    opened.point(left + 3, area["y"] + 30)
    assert opened.read("accuracy-ratio")["a"] == (known["a", 2][0], "at 8x")
    # not run anywhere near 8x: nothing is said, and nothing is interpolated
    opened.point(area["x"] + area["width"] * share_of(chart["x"], 30), area["y"] + 30)
    assert opened.read("accuracy-ratio")[HOSTILE] == ("–", "")


def test_one_line_of_sparsity_goes_through_all_charts(opened: Opened, study: Path) -> None:
    opened.page.locator("summary", has_text="More curves").click()
    charts = charts_of(study / "report.html")
    opened.page.wait_for_function(
        "count => document.querySelectorAll('.card canvas').length === count",
        arg=sum(map(len, charts.values())),
    )
    _, ratio, removed = table(study)["a", 3]
    opened.chart("error-ratio").focus()
    opened.page.keyboard.press("End")
    assert opened.page.locator("#loss-sparsity .said").inner_text() == f"{removed:.1f}% removed"
    for figure, found in charts.items():
        for panel, chart in enumerate(found):
            curves = [curve for curve in chart["curves"] if (chart["method"] or curve["name"]) == "a"]
            if not curves:  # "a" is not in this panel, which has its own nearest point, or none
                continue
            (place,) = {round(share_of(chart["x"], curve["x"][2]), 6) for curve in curves}
            assert opened.line(figure, panel) == pytest.approx(place, abs=0.005), figure
    methods = [chart["method"] for chart in charts["layers-sparsity"]]
    assert opened.line("layers-sparsity", methods.index(HOSTILE)) is None  # which ends at 8x
    assert "a, " in opened.page.locator("#layers-sparsity .said").inner_text()
    assert ratio > 29


def test_a_method_is_switched_off_and_on_in_all_charts(opened: Opened) -> None:
    color = "#0072b2"  # of "a"; that of its line and marks
    before = opened.drawn("accuracy-ratio", color)
    assert before > 100
    button = opened.page.locator("#error-ratio .entry", has_text=re.compile("^a$"))
    button.click()
    opened.page.mouse.move(5, 5)  # what is pointed at is drawn in full, the others pale
    button.evaluate("button => button.blur()")
    opened.settle()
    pressed = opened.page.locator("#accuracy-ratio .entry").first
    assert pressed.get_attribute("aria-pressed") == "false"
    assert opened.drawn("accuracy-ratio", color) == opened.drawn("error-ratio", color) == 0
    pressed.focus()
    opened.page.keyboard.press("Space")
    pressed.evaluate("button => button.blur()")
    opened.settle()
    assert button.get_attribute("aria-pressed") == "true"
    assert opened.drawn("accuracy-ratio", color) == before
    assert opened.said == []


def test_the_charts_follow_the_theme(opened: Opened) -> None:
    light, dark = "#1d2129", "#e7e9ee"  # --ink, of the level of dense
    assert opened.drawn("accuracy-ratio", light) > 100
    assert opened.drawn("accuracy-ratio", dark) == 0
    opened.page.emulate_media(color_scheme="dark")
    opened.settle()
    assert opened.drawn("accuracy-ratio", light) == 0
    assert opened.drawn("accuracy-ratio", dark) > 100
    assert opened.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_telephone(browser: "sync_api.Browser", study: Path, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 400, "height": 800}, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    opened = Opened(context.new_page(), study)
    page = opened.page
    page.wait_for_selector("#accuracy-ratio canvas")
    page.locator("summary", has_text="More curves").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    wide = (
        "cards => cards.filter(card => card.scrollWidth > card.clientWidth).map(card => card.parentNode.id)"
    )
    assert page.locator(".card").evaluate_all(wide) == []
    assert page.locator("#accuracy-ratio .u-over").evaluate("area => area.clientWidth") > 280
    sizes = "all => all.map(each => parseFloat(getComputedStyle(each).fontSize))"
    assert min(page.locator("#accuracy-ratio .chart *").evaluate_all(sizes)) >= 12
    # a tap reads values off as a pointer does
    page.locator("#accuracy-ratio .u-over").tap()
    page.wait_for_function(
        "() => document.querySelector('#accuracy-ratio .said').textContent.includes('removed')"
    )
    assert opened.said == []
    context.close()


def test_the_svg_figures_are_shown_without_scripts_on_paper_and_where_charts_fail(
    browser: "sync_api.Browser", study: Path
) -> None:
    svg, canvas = "#accuracy-ratio .card > svg", "#accuracy-ratio canvas"
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((study / "report.html").as_uri())
    assert page.locator(svg).is_visible()
    assert page.locator(canvas).count() == 0
    context.close()

    context = browser.new_context()
    opened = Opened(context.new_page(), study)
    opened.page.wait_for_selector(canvas)
    assert not opened.page.locator(svg).is_visible()
    opened.page.emulate_media(media="print")
    assert opened.page.locator(svg).is_visible()
    assert not opened.page.locator(canvas).is_visible()
    context.close()

    context = browser.new_context()
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    opened = Opened(context.new_page(), study)
    opened.page.wait_for_selector(svg, state="visible")
    assert opened.page.locator(".chart canvas").count() == 0
    assert any("accuracy-ratio: shown as SVG" in line for line in opened.said)
    context.close()
