"""Figures of units: what stands where, and the order that puts similar units side by side."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from report_fixture import RESULTS, UNITS, Method, make_study, write_csv

from prunekit.digests import write_json_with_digest
from prunekit.report import write_report
from prunekit.report.curves import PlotData
from prunekit.report.layers import (
    clustered,
    correlation_drawing,
    gain_sweep_drawing,
    oracle_of,
    regret_curves,
    regret_drawing,
)
from prunekit.report.points import ACCURACY, Point, points_of, spread_of
from prunekit.report.read_tables import read_results
from prunekit.report.style import svg_of
from prunekit.study_files import read_study


def _blocks(order: list[int]) -> np.ndarray:
    """Three blocks of units that move together, one of them with the sign turned, in a shuffled order."""
    block = np.array([0, 0, 0, 1, 1, 2, 2, 2])[order]
    sign = np.array([1, -1, 1, 1, 1, 1, 1, -1])[order]
    found = np.where(block[:, None] == block[None], 0.9, 0.05) * np.outer(sign, sign)
    np.fill_diagonal(found, 1.0)
    return found


def test_units_that_move_together_or_in_opposition_stand_side_by_side() -> None:
    order = [5, 0, 3, 7, 1, 4, 2, 6]
    blocks = np.array([0, 0, 0, 1, 1, 2, 2, 2])[order]
    placed = blocks[clustered(_blocks(order))]
    assert sorted(clustered(_blocks(order))) == list(range(8))
    assert np.count_nonzero(np.diff(placed)) == 2


def test_two_units_have_one_order() -> None:
    assert clustered(np.eye(2)) == [0, 1]


def test_what_is_drawn_does_not_change_the_correlations() -> None:
    found = _blocks(list(range(8)))
    before = found.copy()
    drawing = correlation_drawing({"fc1": found, "fc2": np.eye(3)})
    assert np.array_equal(found, before)
    text = svg_of(drawing)
    assert "fc1" in text
    assert "fc2" in text


def test_gain_sweeps_have_a_line_on_both_scales_and_marks_at_on_and_off() -> None:
    gains = np.linspace(0, 10, 11)
    errors = np.stack([1 + (gains - 1) ** 2, 2 + (gains - 1) ** 2])
    drawing = gain_sweep_drawing(gains, errors, [0, 10], "squared error")
    linear, log, _ = drawing.figure.axes  # and the colour bar
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    for axes in (linear, log):
        lines = [line for line in axes.get_lines() if len(line.get_xdata()) == len(gains)]
        marks = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines() if line not in lines}
        assert len(lines) == 2
        assert marks == {(1.0, 1.0), (0.0, 2.0), (1.0, 2.0), (0.0, 3.0)}


def test_regret_is_what_the_yardstick_has_more() -> None:
    qualities = {"oracle": (0.99, 0.98, 0.97), "first": (0.985, 0.9, 0.9), "random": (0.8, 0.7, 0.1)}
    points = [
        Point("dense", "d", 0, 1, 0.0, 1.0, {"kept": spread_of([4]), "test_accuracy": spread_of([1.0])})
    ]
    points += [
        Point(
            method,
            "c",
            n,
            1,
            n / 4,
            4 / (4 - n),
            {"kept": spread_of([4 - n]), "test_accuracy": spread_of([q])},
        )
        for method, found in qualities.items()
        for n, q in enumerate(found, start=1)
    ]
    data = PlotData(tuple(points), "random")
    drawing = regret_drawing(regret_curves(data, ACCURACY, "oracle"), data, ACCURACY, "oracle")
    lines = [tuple(np.round(line.get_ydata(), 9)) for line in drawing.figure.axes[0].get_lines()]
    assert (0.5, 8.0, 7.0) in lines
    assert (19.0, 28.0, 87.0) in lines
    low, high = drawing.figure.axes[0].get_ylim()
    assert low < 0.5 < 8.0 < high < 19.0  # random does not set the scale
    assert drawing.tips["point-0-0"] == (
        "first\n1.3x, 25.0% removed\ntest accuracy below that of oracle 0.500 (1 seed)"
    )


def recipe(score: str, **parts: object) -> dict[str, object]:
    return {"score": {"name": score}, "rank": "every_step", "repair": {"name": "none"}, **parts}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with an oracle, and three methods that might be taken for it."""
    methods = {
        "oracle, single pass": Method(10, recipe=recipe("oracle", rank="once")),
        "oracle, retrained": Method(50, recipe=recipe("oracle", retrain={"name": "fine_tune"})),
        "the oracle": Method(30, recipe=recipe("oracle", retrain={"name": "none"})),
        "elsewhere": Method(20, ratios=(3, 5), recipe=recipe("magnitude")),
        "random": Method(5, recipe=recipe("random")),
    }
    folder = make_study(tmp_path / "study", methods)
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:  # units of which equally many are removed, but for one method
        removed = 0 if row["method"].startswith("dense") else 5 * int(row["step"])
        kept = 50 - removed - (2 if row["method"] == "elsewhere" else 0)
        row |= {"prunable": "50", "kept": str(kept), "sparsity": str(1 - kept / 50)}
        row["compression_ratio"] = str(50 / kept)
    write_csv(folder / "results.csv", RESULTS, rows)
    return folder


def test_the_yardstick_is_the_oracle_that_measures_anew_and_only_removes(folder: Path) -> None:
    study = read_study(folder / "study.json")
    assert oracle_of(study) == "the oracle"
    others = {label: note for label, note in study.methods.items() if label != "the oracle"}
    assert oracle_of(study.model_copy(update={"methods": others})) is None


def test_regret_is_taken_where_as_much_is_removed(folder: Path) -> None:
    rows = read_results(folder / "results.csv")
    curves = regret_curves(PlotData(tuple(points_of(rows)), "random"), ACCURACY, "the oracle")
    assert set(curves) == {"oracle, single pass", "oracle, retrained", "random"}
    for method, curve in curves.items():
        for item in curve:
            assert item.x in range(5, 36, 5)
            same, best = (
                [row.test_accuracy for row in rows if row.method == name and row.kept == 50 - item.x]
                for name in (method, "the oracle")
            )
            assert item.y.mean == pytest.approx(100 * (np.mean(best) - np.mean(same)))
            assert len(same) == read_study(folder / "study.json").seeds


def test_regret_counts_units_where_the_compression_counts_parameters(folder: Path) -> None:
    """A unit of one method has 10 parameters of 1,000, one of another 19: the regret is at as many units."""

    def curves() -> dict[str, list[tuple[float, float]]]:
        data = PlotData(tuple(points_of(read_results(folder / "results.csv"))), "random")
        found = regret_curves(data, ACCURACY, "the oracle")
        return {method: [(item.x, item.y.mean) for item in curve] for method, curve in found.items()}

    by_units = curves()
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        size = 10 if row["method"] == "the oracle" else 19
        left = 1000 - size * (50 - int(row["kept"]))
        row |= {"parameters": "1000", "nonzeros": str(left), "compression_ratio": str(1000 / left)}
    write_csv(folder / "results.csv", RESULTS, rows)
    assert curves() == by_units


def test_there_is_no_regret_while_the_oracle_has_no_results(folder: Path) -> None:
    with (folder / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] != "the oracle"]
    write_csv(folder / "results.csv", RESULTS, rows)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "There are no results yet for <b>the oracle</b>" in page
    assert not (folder / "figures" / "regret.svg").exists()


def test_a_report_shows_the_units_that_a_study_wrote_down(folder: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    assert 'id="units"' in page
    assert (folder / "figures" / "regret.svg").is_file()
    assert not (folder / "figures" / "gain-sweep.svg").exists()
    assert "img-src" not in page
    write_json_with_digest(folder / "units.json", UNITS)
    page = write_report(folder).read_text(encoding="utf-8")
    for name in ("regret", "gain-sweep", "correlation"):
        assert (folder / "figures" / f"{name}.svg").is_file()
    assert "Error against the gain of a unit" in page
    assert "Correlation between units" in page
    # a heat map is a picture in its SVG, which a browser shows only if the page's policy allows it
    sources = re.findall(r'<image [^>]*?href="([^"]{5})', page)
    assert sources
    assert set(sources) == {"data:"}
    assert re.search(r"""content="default-src 'none'; [^"]*; img-src data:">""", page)
