import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prunekit.ranking import lowest, lowest_per_row

FEW = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf])  # many ties, and both zeros
VALUES = hnp.arrays(np.float64, hnp.array_shapes(max_dims=4, max_side=6), elements=FEW)


def by_sorting(values: np.ndarray, count: int) -> np.ndarray:
    marked = np.zeros(values.size, dtype=bool)
    marked[np.argsort(values.reshape(-1), kind="stable")[:count]] = True
    return marked.reshape(values.shape)


@given(VALUES, st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_lowest_is_a_stable_sort(dtype, values, data):
    count = data.draw(st.integers(0, values.size))
    found = lowest(torch.from_numpy(values).to(dtype), count)
    assert np.array_equal(found.numpy(), by_sorting(values, count))


@given(st.integers(1, 200), st.data())
def test_constant_values_go_from_the_front(size, data):
    count = data.draw(st.integers(0, size))
    found = lowest(torch.full((size,), 3.0), count)
    assert int(found.sum()) == count
    assert bool(found[:count].all())


def test_layout_in_memory_does_not_matter():
    values = torch.randint(3, (4, 3, 5, 5)).float()
    last = values.to(memory_format=torch.channels_last)
    assert torch.equal(lowest(values, 60), lowest(last, 60))
    assert torch.equal(lowest(values.transpose(0, 1), 60), lowest(values.transpose(0, 1).contiguous(), 60))


def test_values_with_a_gradient_are_ranked():
    assert int(lowest(torch.randn(9, requires_grad=True), 4).sum()) == 4


@pytest.mark.parametrize("count", [-1, 7])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"cannot choose {count} of 6"):
        lowest(torch.zeros(6), count)


@given(hnp.arrays(np.float64, (5, 7), elements=FEW), st.integers(0, 7))
def test_rows_are_sorted_each_for_itself(values, count):
    found = lowest_per_row(torch.from_numpy(values), count).numpy()
    expected = np.stack([by_sorting(row, count) for row in values])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["random", "constant"])
def test_more_values_than_quantile_can_take(kind):
    size, count = 2**24 + 1, 15_000_001
    values = torch.rand(size) if kind == "random" else torch.ones(size)
    with pytest.raises(RuntimeError, match="too large"):
        values.quantile(0.9)
    found = lowest(values, count)
    assert int(found.count_nonzero()) == count
    assert float(values[found].max()) <= float(values[~found].min())
