import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.parts.allocation.base import share_out
from prunekit.parts.allocation.density import PerLayer

LAYERS = st.lists(
    st.tuples(st.integers(0, 10**6), st.floats(0, 1), st.floats(-10, 2e6)), min_size=1, max_size=12
)


@given(LAYERS, st.floats(0, 1))
def test_the_sum_is_exact_and_bounds_hold(layers, share):
    capacity = {str(i): size for i, (size, _, _) in enumerate(layers)}
    least = {str(i): int(size * part) for i, (size, part, _) in enumerate(layers)}
    wanted = {str(i): value for i, (_, _, value) in enumerate(layers)}
    low, high = sum(least.values()), sum(capacity.values())
    total = low + round(share * (high - low))
    found = share_out(total, wanted, capacity, least)
    assert sum(found.values()) == total
    assert all(least[name] <= found[name] <= capacity[name] for name in found)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9))
def test_what_fits_is_left_alone(amounts):
    wanted = {str(i): float(amount) for i, amount in enumerate(amounts)}
    assert share_out(sum(amounts), wanted, dict.fromkeys(wanted, 1000)) == wanted


def test_overflow_goes_where_there_is_room():
    found = share_out(100, {"a": 80.0, "b": 10.0, "c": 10.0}, {"a": 40, "b": 30, "c": 50})
    # 40 overflow; b has room for 20, c for 40
    assert found == {"a": 40, "b": 23, "c": 37}


def test_remainders_go_to_the_largest_and_ties_to_the_first():
    assert share_out(10, {"a": 3.3, "b": 3.4, "c": 3.3}, dict.fromkeys("abc", 9)) == {"a": 3, "b": 4, "c": 3}
    assert share_out(2, {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, dict.fromkeys("abcd", 9)) == {
        "a": 1, "b": 1, "c": 0, "d": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("floor", "size", "kept"), [(0.001, 1000, 1), (0.001, 1001, 2), (0.5, 7, 4), (0, 5, 0)]
)
def test_the_floor_is_rounded_up_to_whole_weights(floor, size, kept):
    assert size - PerLayer(floor=floor).capacity(size) == kept
