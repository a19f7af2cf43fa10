"""Where a curve leaves its first accuracy, how much it rises, and how it is read, on curves by hand."""

import pytest

from removal_curves import curves, left_at, read_at, rises

CURVE = [(1.0, 0.98), (0.6, 0.975), (0.8, 0.972), (0.4, 0.96), (0.2, 0.975), (0.1, 0.3)]


def test_a_curve_is_left_at_the_last_share_before_it_has_lost_more():
    assert left_at(CURVE) == 0.6  # 0.2 is within the loss again, behind 0.4, which is not
    assert left_at(CURVE, 0.007) == 1.0
    assert left_at(CURVE, 0.02) == 0.2
    assert left_at([(1.0, 0.98), (0.5, 0.97)]) == 0.5  # the loss itself is not more than the loss


def test_only_rises_count_and_all_of_them():
    assert rises([0.98, 0.972, 0.975, 0.96, 0.975, 0.3]) == pytest.approx(0.003 + 0.015)
    assert rises([0.9, 0.9, 0.5]) == 0


def test_between_two_points_a_curve_is_straight():
    assert read_at(CURVE, [0.8, 0.7, 0.15]) == pytest.approx([0.972, 0.9735, 0.6375])


def test_a_curve_begins_at_the_dense_network_of_its_seed(tmp_path):
    table = tmp_path / "results.csv"
    lines = ["method,seed,compression_ratio,test_accuracy", "dense,0,1,0.9", "dense,1,1,0.8"]
    lines += ["magnitude,1,4,0.5", "unpruned,0,1,0.95", "magnitude,0,2,0.7"]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert curves(table) == {
        ("magnitude", 1): [(1.0, 0.8), (0.25, 0.5)],
        ("magnitude", 0): [(1.0, 0.9), (0.5, 0.7)],
    }
