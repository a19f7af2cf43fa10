"""Points of the curve of error against bytes, from rows by hand."""

import pytest

from size_curve import Series, points, read


def row(method, size, accuracy, **more):
    return {"method": method, "packed_bytes": str(size), "test_accuracy": str(accuracy), **more}


def test_seeds_of_a_recipe_are_one_point_and_points_are_in_order_of_size():
    rows = [row("smallest", 3000, 0.98), row("tiny", 900, 0.95), row("smallest", 3200, 0.99)]
    assert points(rows) == [
        (900, pytest.approx(5.0), 0.0),
        (3100, pytest.approx(1.5), pytest.approx(0.5**0.5)),
    ]


def test_networks_and_recipes_are_points_of_their_own():
    rows = [row("smallest", 10, 0.9, network="a"), row("smallest", 20, 0.9, network="b")]
    assert [size for size, *_ in points(rows)] == [10, 20]
    assert len(points([row("other sizes", size, 0.9, cell=str(size)) for size in (1, 2, 3)])) == 3


def test_a_series_takes_its_methods_from_its_tables(tmp_path):
    lines = ["method,packed_bytes,test_accuracy", "smallest,100,0.9", "random,50,0.5"]
    (tmp_path / "one.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    series = Series("ours", ("one.csv", "lost.csv"), ("smallest",), "k", "o")
    assert read(series, tmp_path) == [(100, pytest.approx(10.0), 0.0)]
