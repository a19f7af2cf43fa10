import csv
import itertools
import math
import random
from pathlib import Path

import pytest
from report_fixture import MANY, RESULTS, Method, make_study, write_csv

from prunekit.report.curves import PlotData, curve_drawings
from prunekit.report.points import ACCURACY, points_of
from prunekit.report.read_tables import read_results
from prunekit.report.style import (
    Drawing,
    inline,
    linear_limits,
    log_limits,
    log_ticks,
    ratio_ticks,
    spread_out,
    svg_of,
    write_atomically,
)


def drawings(folder: Path) -> list[Drawing]:
    points = points_of(read_results(folder / "results.csv"))
    return curve_drawings(PlotData(tuple(points), "random"), ACCURACY)


def test_same_numbers_same_bytes(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {k: MANY[k] for k in ("SNIP", "lottery ticket", "random")})
    first, second = ([svg_of(d) for d in drawings(folder)[:2]] for _ in range(2))
    assert first == second
    assert "<dc:date>" not in first[0]
    assert ">lottery ticket</text>" in first[0]  # text stays text


def test_every_point_has_a_tooltip(tmp_path: Path) -> None:
    folder = make_study(
        tmp_path, {"a": Method(10, (2, 4, 80)), "b $x_1$ <i>": Method(8, (2,), True)}, seeds=2
    )
    drawing = drawings(folder)[0]
    svg = svg_of(drawing)
    assert len(drawing.tips) == 4
    assert svg.count("<title>") == 4
    assert "b $x_1$ &lt;i&gt;\n2x, 50" in svg
    assert "<i>" not in svg
    page = inline(svg, drawing)
    assert page.startswith("<svg viewBox=")
    assert "http" not in page
    assert "<style" not in page
    assert 'id="accuracy-ratio--axes_1"' in page
    assert "fill: #ffffff" in svg
    assert "#ffffff" not in page  # the paper of the page, which may be dark
    assert "fill: var(--card)" in page
    assert "var(--ink)" in page


def test_no_error_at_all_has_no_place_on_a_log_axis(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"a": Method(10, (2, 4, 8))}, seeds=1)
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["method"] == "dense" or row["step"] == "1":
            row["test_accuracy"] = "1.0"
    write_csv(folder / "results.csv", RESULTS, rows)
    error = drawings(folder)[1]
    assert error.name == "error-ratio"
    assert "one point with a value of zero" in error.caption
    assert svg_of(error).count("<title>") == 2


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_touch(seed: int) -> None:
    dice = random.Random(seed)
    wanted = [dice.random() ** 3 for _ in range(9)]
    found = spread_out(wanted, 0.06, 0.0, 1.0)
    order = sorted(range(9), key=lambda i: wanted[i])
    gaps = [found[b] - found[a] for a, b in itertools.pairwise(order)]
    assert min(gaps) >= 0.06 - 1e-12
    assert min(found) >= 0
    assert max(found) <= 1 + 1e-12


def test_labels_that_fit_stay_and_too_many_are_set_evenly() -> None:
    assert spread_out([0.9, 0.1, 0.5], 0.1, 0, 1) == pytest.approx([0.9, 0.1, 0.5])
    assert spread_out([0.5, 0.5], 0.2, 0, 1) == pytest.approx([0.4, 0.6])
    assert spread_out([0.5] * 5, 0.5, 0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert spread_out([], 0.1, 0, 1) == []


def test_axis_shows_the_top_and_lets_collapsed_points_go() -> None:
    values = [(98.0, 0.1), (97.9, 0.1), (97.5, 0.1), (10.0, 1.0)]
    low, high = linear_limits((98.2, 0.1), values, True, True)
    assert 94 < low < 97.4
    assert 98.3 < high < 99
    low, high = linear_limits((98.2, 0.0), [(98.1, 0.0)], True, True)
    assert high - low > 0.9  # a tenth of a point does not fill the picture
    low, high = linear_limits((1.0, 0.0), [(1.1, 0.0), (1.2, 0.0), (50.0, 0.0)], False, False)
    assert low < 1.0 < 1.2 < high < 3


def test_log_axis() -> None:
    low, high = log_limits([2.0, 80.0, 0.0])
    assert 0 < low < 2 < 80 < high
    low, high = log_limits([1.0])
    assert high / low == pytest.approx(1.5)
    for low, high in ((1.2, 95.0), (1.4, 2.1), (0.031, 0.042), (0.9, 3.2)):
        ticks = log_ticks(low, high)
        assert len(ticks) >= 3
        assert all(low <= t <= high * 1.0001 for t in ticks)
    assert ratio_ticks(100) == [1, 2, 5, 10, 20, 50, 100]
    assert all(math.isfinite(t) for t in ratio_ticks(2.0))


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"old"


def test_packed_files_have_a_curve_of_their_own(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"a": Method(10, (2, 4, 8)), "b": Method(8, (2,))}, seeds=2)
    assert not [each for each in drawings(folder) if each.name == "error-file"]
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        last = row["method"] == "a" and row["step"] == "3"
        row["packed_bytes"] = str(int(row["bytes"]) // 40) if last else ""
    write_csv(folder / "results.csv", [*RESULTS, "packed_bytes"], rows)
    (drawing,) = (each for each in drawings(folder) if each.name == "error-file")
    assert len(drawing.tips) == 1
    assert "8x" in next(iter(drawing.tips.values()))
    marker = next(line for line in drawing.figure.axes[0].lines if line.get_gid() in drawing.tips)
    assert marker.get_xdata()[0] == pytest.approx(40, rel=0.01)
