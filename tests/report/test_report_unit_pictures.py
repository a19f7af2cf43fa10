"""Pictures of units: what stands where, and the order that puts similar units side by side."""

from __future__ import annotations

import numpy as np

from prunekit.report.style import svg_of
from prunekit.report.unit_pictures import clustered, correlation_drawing, gain_sweep_drawing, regret_drawing


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
    linear, log = drawing.figure.axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    for axes in (linear, log):
        lines = [line for line in axes.get_lines() if len(line.get_xdata()) == len(gains)]
        marks = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines() if line not in lines}
        assert len(lines) == 2
        assert marks == {(1.0, 1.0), (0.0, 2.0), (1.0, 2.0), (0.0, 3.0)}


def test_regret_is_what_the_yardstick_has_more() -> None:
    curves = {"oracle": {1: 99.0, 2: 98.0}, "first": {1: 98.5, 2: 90.0}, "random": {1: 80.0, 2: 70.0}}
    drawing = regret_drawing(curves, "oracle", "random", "test accuracy")
    lines = [tuple(line.get_ydata()) for line in drawing.figure.axes[0].get_lines()]
    assert (0.5, 8.0) in lines
    assert (19.0, 28.0) in lines
