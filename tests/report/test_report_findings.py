"""The choosing, against answers worked out by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
from report_fixture import MANY, Method, make_study

from prunekit.digests import read_json_with_digest, write_json_with_digest
from prunekit.report.best import asked_ratios, best_at, best_table, max_compression_within_tolerance
from prunekit.report.findings import Finding, _emptied, _starved, findings
from prunekit.report.heat_map import layer_table
from prunekit.report.page import write_report
from prunekit.report.points import (
    ACCURACY,
    MSE,
    LayerPoint,
    Point,
    layer_points_of,
    points_of,
    spread_of,
    times_of,
)
from prunekit.report.read_tables import LayerRow, read_results
from prunekit.report.style import looks_of
from prunekit.study_files import StudyFile, read_study


def point(
    method: str, ratio: float, validation: list[float], test: list[float], cell: str = "c", **more: Any
) -> Point:
    values = {"validation_accuracy": spread_of(validation), "test_accuracy": spread_of(test), **more}
    return Point(method, cell, round(100 * ratio), len(test), 1 - 1 / ratio, ratio, values)


DENSE = point("dense", 1.0, [0.95, 0.95], [0.94, 0.96])


def test_chosen_on_validation_and_reported_on_test() -> None:
    points = [
        DENSE,
        point("a", 4.0, [0.93, 0.93], [0.90, 0.91]),  # best on validation, not on test
        point("b", 4.1, [0.92, 0.92], [0.92, 0.93]),
        point("c", 4.0, [0.50, 0.50], [0.50, 0.51]),
    ]
    best = best_at(points, 4.0, ACCURACY)
    assert best is not None
    assert best.point.method == "a"
    assert best.runner_up is not None
    assert best.runner_up.method == "b"
    assert [each.method for each in best.candidates] == ["a", "b", "c"]
    assert best.test(ACCURACY).mean == pytest.approx(0.905)
    # |0.905 - 0.925| = 0.02 is more than 2 x 0.00707: b is better on test, beyond the spread
    assert (best.verdict, best.rivals) == ("behind on test", ("b",))


@pytest.mark.parametrize(
    ("test", "verdict", "rivals"),
    [
        ([0.91, 0.92], "within the spread", ("b",)),  # gap 0.010, spreads 0.0071 + 0.0071
        ([0.88, 0.89], "ahead", ()),  # gap 0.040
        ([0.92], "spread unknown", ()),
    ],
)
def test_a_lead_is_claimed_only_beyond_the_spread(
    test: list[float], verdict: str, rivals: tuple[str, ...]
) -> None:
    points = [DENSE, point("a", 8.0, [0.93, 0.93], [0.92, 0.93]), point("b", 8.0, [0.9, 0.9], test)]
    best = best_at(points, 8.0, ACCURACY)
    assert best is not None
    assert (best.verdict, best.rivals) == (verdict, rivals)


def test_any_other_method_within_the_spread_forbids_the_claim_not_the_runner_up_only() -> None:
    points = [
        DENSE,
        point("a", 8.0, [0.93, 0.93], [0.92, 0.93]),
        point("b", 8.0, [0.92, 0.92], [0.80, 0.81]),
        point("c", 8.0, [0.70, 0.70], [0.92, 0.93]),
    ]
    best = best_at(points, 8.0, ACCURACY)
    assert best is not None
    assert (best.verdict, best.rivals) == ("within the spread", ("c",))


def test_a_method_that_does_as_well_with_fewer_weights_forbids_the_claim() -> None:
    points = [
        DENSE,
        point("a", 8.0, [0.93, 0.93], [0.92, 0.93]),
        point("b", 8.0, [0.90, 0.90], [0.80, 0.81]),
        point("c", 16.0, [0.90, 0.90], [0.92, 0.93]),  # no point near 8x, but as good at 16x
        point("d", 4.0, [0.99, 0.99], [0.99, 0.99]),  # with more weights: says nothing
    ]
    best = best_at(points, 8.0, ACCURACY)
    assert best is not None
    assert (len(best.candidates), best.verdict, best.rivals) == (2, "within the spread", ("c",))


def test_the_smallest_ratio_at_or_above_within_a_quarter() -> None:
    fine = [0.9, 0.9]
    points = [DENSE, *(point("a", r, fine, fine) for r in (3.9, 4.3, 4.8)), point("b", 5.1, fine, fine)]
    best = best_at(points, 4.0, ACCURACY)
    assert best is not None
    assert (best.point.ratio, len(best.candidates), best.verdict) == (4.3, 1, "only method here")
    assert best_at(points, 8.0, ACCURACY) is None
    near = best_at([DENSE, point("a", 3.97, fine, fine)], 4.0, ACCURACY)  # whole weights: 3.97 is 4
    assert near is not None


def test_of_a_sweep_at_one_ratio_validation_chooses() -> None:
    points = [
        DENSE,
        point("a", 4.00, [0.90, 0.90], [0.99, 0.99], "weak"),
        point("a", 4.02, [0.92, 0.92], [0.80, 0.80], "strong"),
    ]
    best = best_at(points, 4.0, ACCURACY)
    assert best is not None
    assert best.point.cell == "strong"


def test_ratios_asked() -> None:
    fine = [0.9, 0.9]
    assert asked_ratios([DENSE, point("a", 2.1, fine, fine), point("b", 52.0, fine, fine)], ACCURACY) == [
        2.0,
        50.0,
    ]
    assert asked_ratios([DENSE, point("a", 1.3, fine, fine)], ACCURACY) == [1.3]
    cells = [point("a", ratio, fine, fine, cell=f"{ratio}x") for ratio in (2.0, 5.06, 10.2)]
    assert asked_ratios([DENSE, *cells], ACCURACY) == [2.0, 5.06, 10.2]
    steps = [point("a", ratio, fine, fine) for ratio in (2.0, 5.06, 12.0)]  # on the way to 12x
    assert asked_ratios([DENSE, *steps], ACCURACY) == [2.0, 12.0]
    assert asked_ratios([DENSE], ACCURACY) == []
    assert best_table([DENSE], ACCURACY) == []


def test_max_compression_within_tolerance() -> None:
    # dense is 0.95 ± 0.0141, so that the tolerance is its spread
    same = [0.9, 0.9]
    points = [DENSE, *(point("a", r, same, [t, t]) for r, t in ((2.0, 0.96), (4.0, 0.937), (8.0, 0.93)))]
    reached = max_compression_within_tolerance(points, "a", ACCURACY)
    assert reached is not None
    assert reached.ratio == 4.0
    assert max_compression_within_tolerance([DENSE, point("a", 2.0, same, [0.5, 0.5])], "a", ACCURACY) is None


def test_lower_is_better_for_an_error() -> None:
    def mse(method: str, ratio: float, value: float) -> Point:
        pair = [value, value * 1.01]
        values = {"validation_mse": spread_of(pair), "test_mse": spread_of(pair)}
        return Point(method, "c", 1, 2, 1 - 1 / ratio, ratio, values)

    points = [mse("dense", 1.0, 1.0), mse("a", 4.0, 1.04), mse("b", 4.0, 2.0)]
    best = best_at(points, 4.0, MSE)
    assert best is not None
    assert (best.point.method, best.verdict) == ("a", "ahead")
    assert max_compression_within_tolerance(points, "a", MSE) is points[1]
    assert max_compression_within_tolerance(points, "b", MSE) is None


def test_layers_are_compared_where_most_methods_have_a_point() -> None:
    points = [
        DENSE,
        point("a", 2.0, [0.95, 0.95], [0.95, 0.95]),
        point("a", 8.0, [0.9, 0.9], [0.9, 0.9]),
        point("b", 2.1, [0.9, 0.9], [0.9, 0.9]),
    ]
    layers = [
        LayerPoint(p.method, p.cell, p.step, n, "4x4", 16, p.sparsity)
        for p in points[1:]
        for n in ("in", "out")
    ]
    table = layer_table(points, layers, ACCURACY)
    assert table is not None
    assert table.asked == 2.0
    assert [layer.layer for layer in table.layers] == ["in", "out"]
    assert table.sparsity["out"] == {"a": pytest.approx(0.5), "b": pytest.approx(1 - 1 / 2.1)}
    assert layer_table(points, [], ACCURACY) is None


def said(folder: Path) -> list[str]:
    found = findings(
        read_study(folder / "study.json"), points_of(read_results(folder / "results.csv")), ACCURACY
    )
    return [str(finding) for finding in (*found.findings, *found.cautions)]


def test_findings_of_a_study(tmp_path: Path) -> None:
    folder = make_study(tmp_path, MANY)
    study = read_json_with_digest(folder / "study.json")
    study["methods"]["not run"] = {"recipe": {}}
    write_json_with_digest(folder / "study.json", study)
    sentences = said(folder)
    assert sentences[0].startswith("The dense network has a test accuracy of 98.")
    assert "trained for as long as the pruned ones" in sentences[0]
    assert any("out furthest: still within 0.50 points of dense at" in s for s in sentences)
    assert any("ahead of every other method measured there, beyond the spread" in s for s in sentences)
    assert any(s.startswith("Removal at random is beaten") for s in sentences)
    assert "There are no results yet for not run." in sentences


def test_one_seed_wins_nothing(tmp_path: Path) -> None:
    sentences = said(make_study(tmp_path, {"a": Method(40), "random": Method(3)}, seeds=1))
    assert not any("ahead" in s or "beaten" in s for s in sentences)
    assert any("There is one seed only" in s for s in sentences)


def test_random_is_compared_only_with_methods_retrained_like_it(tmp_path: Path) -> None:
    """A retrained control beats any choice that is not retrained, and says nothing of the choice."""

    def trained(epochs: int) -> dict[str, object]:
        return {"retrain": {"name": "fine_tune", "training": {"epochs": epochs}}}

    methods = {
        "alike": Method(40, recipe=trained(5)),
        "random": Method(10, recipe=trained(5)),
        "not trained": Method(3, recipe={"retrain": {"name": "none"}}),
        "trained less": Method(3, recipe=trained(1)),
    }
    (sentence,) = [s for s in said(make_study(tmp_path, methods)) if s.startswith("Removal at random")]
    assert "beaten beyond the spread by every method retrained as it is at" in sentence
    assert "not trained" not in sentence
    assert "trained less" not in sentence


def test_random_choices_with_the_densities_of_a_method_are_its_controls(tmp_path: Path) -> None:
    """They are none of the methods that beat removal at random, and each method is held against its own."""
    methods = {
        "good": Method(40, (2, 20)),
        "as good": Method(2, (2, 20)),
        "bad": Method(4, (2, 20)),
        "as bad": Method(12, (2, 20)),
        "random": Method(1, (2, 20)),
    }
    folder = make_study(tmp_path, methods)
    study = read_json_with_digest(folder / "study.json")
    study["study"] = {"methods": {"good": {"random_of": None}, "as good": {"random_of": "good"}}}
    study["study"]["methods"]["as bad"] = {"random_of": "bad"}
    write_json_with_digest(folder / "study.json", study)
    text = "\n".join(said(folder))
    assert (
        "Beyond the spread, good beats a random choice with its own densities per layer at 2x and 20x."
        in text
    )
    assert (
        "Beyond the spread, bad does not beat a random choice with its own densities per layer at 2x and 20x."
        in text
    )
    assert "as good" not in text.replace("dense, trained as long", "")
    page = write_report(folder).read_text()
    assert "<dt>methods</dt><dd>2</dd>" in page
    assert page.count('<span class="tag">control</span>') == 4


def test_controls_from_scratch_are_said_by_their_budget_and_told_apart(tmp_path):
    methods = {
        "good": Method(4, (2, 20)),
        "good, from scratch": Method(1, (2,)),
        "good, from scratch, whole budget": Method(12, (2,)),
    }
    folder = make_study(tmp_path, methods)
    study = read_json_with_digest(folder / "study.json")
    study["study"] = {"methods": {"good": {"from_scratch": True}}}
    write_json_with_digest(folder / "study.json", study)
    text = "\n".join(said(folder))
    own = "its own final shape trained from scratch for as long as"
    assert f"Beyond the spread, good beats {own} the retraining at 2x." in text
    assert f"Beyond the spread, good does not beat {own} all training at 2x." in text
    page = write_report(folder).read_text()
    assert page.count('<span class="tag">control</span>') == 3  # and the dense network, trained as long
    looks = looks_of(list(methods), None, [], read_study(folder / "study.json").control_of)
    assert len({look.dasharray for look in looks.values()}) == 3
    assert len({look.color for look in looks.values()}) == 1


def test_figures_are_named_at_the_ratios_that_were_run() -> None:
    """4 and 8 are asked for; the methods were run at 4.6 and 9.6 to 9.8, and nothing else may be named."""
    note = {"recipe": {"retrain": {"name": "none"}}}
    study = StudyFile(
        **{"format": 2, "name": "s", "title": "t", "question": "", "expected": "", "command": ""},
        **{"dataset": {}, "model": {}, "training": {"epochs": 1}, "seeds": 2, "environment": {}},
        **{"methods": dict.fromkeys(("a", "b", "random"), note), "primary": "test_accuracy"},
        controls={"random": "random"},
    )
    points = [
        DENSE,
        point("a", 4.6, [0.93, 0.93], [0.92, 0.93]),
        point("b", 4.6, [0.92, 0.92], [0.92, 0.93]),
        point("random", 4.6, [0.5, 0.5], [0.5, 0.51]),
        point("a", 9.8, [0.91, 0.91], [0.91, 0.92]),
        point("b", 9.6, [0.8, 0.8], [0.8, 0.81]),
        point("random", 9.6, [0.3, 0.3], [0.3, 0.31]),
    ]
    sentences = [str(finding) for finding in findings(study, points, ACCURACY).findings]
    run = {"4.6x", "9.6x", "9.8x"}
    assert {ratio for text in sentences for ratio in re.findall(r"[\d.]+x", text)} <= run
    assert (
        "a is ahead of every other method measured there, beyond the spread, at 9.8x (by 11.00 points)."
        in sentences
    )
    assert "At 4.6x the best methods lie within the spread of each other: no winner there." in sentences
    assert "Removal at random is beaten beyond the spread by every method at 4.6x and 9.6x." in sentences
    layers = [LayerPoint(p.method, p.cell, p.step, "in", "4x4", 16, p.sparsity) for p in points[1:]]
    table = layer_table(points, layers, ACCURACY)
    assert table is not None
    assert (table.asked, table.ratios) == (4.0, "4.6x")
    assert times_of(points[4:]) == "9.6x to 9.8x"


def test_an_emptied_layer_is_said_with_its_method_sparsity_and_seeds() -> None:
    """Also one that is empty in some seeds only, of which the mean over the seeds says nothing."""

    def layer(step: int, name: str, kept: dict[int, int]) -> list[LayerRow]:
        return [
            LayerRow(
                **{"method": "ranks", "cell": "a", "seed": seed, "step": step, "layer": name},
                **{"shape": "10x30", "parameters": 300, "kept": left, "sparsity": 1 - left / 300},
            )
            for seed, left in kept.items()
        ]

    points = [
        Point("ranks", "a", step, 3, sparsity, 1 / (1 - sparsity), {})
        for step, sparsity in ((1, 0.5), (2, 0.75), (3, 0.9))
    ]
    rows = [
        *layer(1, "fc1", {0: 150, 1: 150, 2: 150}),
        *layer(2, "fc1", {0: 0, 1: 90, 2: 0}),
        *layer(3, "fc1", {0: 0, 1: 0, 2: 0}),
        *layer(2, "fc2", {0: 1, 1: 1, 2: 1}),
        *layer(3, "fc2", {0: 0, 1: 0, 2: 0}),
    ]
    layers = layer_points_of(rows)
    assert [str(Finding(each)) for each in _emptied(points, layers)] == [
        "ranks empties fc1 (first at a sparsity of 75.0%, seeds 0 and 2 of 3) and fc2 (first at a sparsity "
        "of 90.0%, all 3 seeds): an empty layer passes nothing of its input on."
    ]
    # what is said there is not said twice
    (starved,) = (str(Finding(each)) for each in _starved(points, layers))
    assert "almost nothing of fc2, first at a sparsity of 75.0%" in starved
    assert _emptied(points, layers[:1]) == []


def test_a_layer_that_keeps_almost_nothing_is_said_with_its_method_and_sparsity():
    def layer(method, step, name, sparsity):
        return LayerPoint(method, "a", step, name, "100x300", 30_000, sparsity)

    points = [
        Point(method, "a", step, 3, sparsity, 1 / (1 - sparsity), {})
        for method in ("ranks", "even")
        for step, sparsity in ((1, 0.5), (2, 0.75))
    ]
    layers = [
        layer("ranks", 1, "fc1", 0.25),
        layer("ranks", 1, "fc2", 0.999),
        layer("ranks", 2, "fc1", 0.999),
        layer("ranks", 2, "fc2", 0.999),
        *(layer("even", step, name, s) for step, s in ((1, 0.5), (2, 0.75)) for name in ("fc1", "fc2")),
    ]
    said = _starved(points, layers)
    assert [str(Finding(each)) for each in said] == [
        "ranks leaves almost nothing of fc2 and fc1, first at a sparsity of 50.0%: "
        "the allocation per_layer or a higher floor keeps more."
    ]
