import itertools
import math
from typing import Any

import numpy as np
import pytest

from prunekit.report.points import (
    ACCURACY,
    MOST_POINTS,
    MSE,
    count,
    curve_of,
    even,
    format_number,
    names,
    points_of,
    signed,
    spread_of,
    times,
)
from prunekit.report.read_tables import MEASURES, Row


def row(method: str, cell: str, seed: int, step: int, kept: int, **values: float) -> Row:
    filled: dict[str, Any] = dict.fromkeys(MEASURES) | values
    where = {
        "line": 2,
        "dataset": "d",
        "model": "m",
        "method": method,
        "cell": cell,
        "seed": seed,
        "step": step,
    }
    sizes = {"sparsity": 1 - kept / 1000, "compression_ratio": 1000 / kept, "prunable": 1000, "kept": kept}
    return Row(**where, **sizes, **filled)


def test_mean_and_sample_deviation_against_numpy() -> None:
    values = np.random.default_rng(3).normal(0.9, 0.02, 7)
    found = spread_of([float(v) for v in values])
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert spread_of([0.5]).sd is None
    assert math.isnan(spread_of([0.5, math.nan]).mean)
    assert not spread_of([0.5, math.inf]).finite


def test_seeds_are_joined_by_cell_and_step_not_by_sparsity() -> None:
    rows = [
        row("dense", "d", 0, 0, 1000, test_accuracy=0.95),
        row("x", "c", 1, 1, 498, test_accuracy=0.92),
        row("x", "c", 0, 1, 502, test_accuracy=0.90),
        row("x", "c", 0, 2, 250, test_accuracy=0.80),
        row("x", "e", 0, 1, 500, test_accuracy=0.70),
    ]
    points = points_of(rows)
    assert [(p.method, p.cell, p.step, p.seeds) for p in points] == [
        *(("dense", "d", 0, 1), ("x", "c", 1, 2), ("x", "c", 2, 1), ("x", "e", 1, 1)),
    ]
    assert points[1].sparsity == pytest.approx(0.5)
    assert points[1].values["test_accuracy"].mean == pytest.approx(0.91)
    assert "test_mse" not in points[1].values


def test_a_sweep_is_one_line_through_its_ends_and_a_single_cell_a_line_through_its_steps() -> None:
    dense = row("dense", "d", 0, 0, 1000)
    sweep = [row("x", c, 0, 1, kept) for c, kept in (("a", 100), ("b", 500), ("c", 250))]
    curve = curve_of(points_of([dense, *sweep]), "x")
    assert [p.cell for p in curve] == ["b", "c", "a"]
    steps = [row("x", "a", 0, s, 1000 // (s + 1)) for s in (2, 1, 3)]
    curve = curve_of(points_of([dense, *steps]), "x")
    assert [p.step for p in curve] == [1, 2, 3]
    ends = [row("x", "b", 0, s, 900 // (s + 1)) for s in (2, 1)]
    curve = curve_of(points_of([dense, *steps, *ends]), "x")
    assert [(p.cell, p.step) for p in curve] == [("b", 2), ("a", 3)]


def test_spreads_that_touch() -> None:
    wide, far = spread_of([0.90, 0.94]), spread_of([0.80, 0.801])
    assert wide.overlaps(spread_of([0.93, 0.97])) is True
    assert wide.overlaps(far) is False
    assert wide.overlaps(spread_of([0.1])) is None


def test_numbers_in_words() -> None:
    assert ACCURACY.show_spread(spread_of([0.97, 0.98])) == "97.50 ± 0.71%"
    assert ACCURACY.show_spread(spread_of([math.nan])) == "diverged"
    assert MSE.show_spread(spread_of([0.125])) == "0.125"
    assert ACCURACY.change(0.95, 0.9536) == "\N{MINUS SIGN}0.36"
    assert MSE.change(0.11, 0.10) == "+10.0%"
    assert [times(r) for r in (2.0, 4.25, 11.96, 9.97)] == ["2x", "4.2x", "12x", "10x"]
    counts = [count(n) for n in (None, 950, 12_300, 999_900, 4_560_000)]
    assert counts == ["–", "950", "12.3 k", "1 M", "4.56 M"]
    shown = [format_number(v) for v in (0.5, 1.0, 0.0, 123.4, 123456.0, 0.000012)]
    assert shown == ["0.500", "1.00", "0.00", "123", "123456", "1.2e-05"]
    assert signed(-0.001, 2) == "0.00"
    assert [names(list("abc"[:n])) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize("count", [1, 2, MOST_POINTS, MOST_POINTS + 1, 95, 1000])
def test_an_even_choice_keeps_the_ends_the_order_and_the_distance(count: int) -> None:
    chosen = even(range(count))
    assert len(chosen) == min(count, MOST_POINTS)
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert all(gap >= 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1
