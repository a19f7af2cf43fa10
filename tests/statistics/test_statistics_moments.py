"""Moments in any number of pieces are those of all rows together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.statistics import Moments


def of(rows, *, pairs):
    moments = Moments(rows.shape[0], rows.shape[2], pairs=pairs)
    moments.add(rows)
    return moments


@given(
    pieces=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    shards=st.integers(1, 3),
    pairs=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pieces_and_shards(pieces, shards, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, sum(pieces) or 1, 3, generator=generator, dtype=torch.float64).cumsum(1)
    parts = list(rows.split(pieces, 1)) if sum(pieces) else [rows]
    merged = [Moments(2, 3, pairs=pairs) for _ in range(shards)]
    for number, part in enumerate(parts):
        merged[number % shards].add(part)
    for other in merged[1:]:
        merged[0].merge(other)
    array = rows.numpy()
    apart = array - array.mean(1, keepdims=True)
    products = np.einsum("grc,grd->gcd", apart, apart) / array.shape[1]
    assert merged[0].count == array.shape[1]
    assert np.allclose(merged[0].mean, array.mean(1))
    assert np.allclose(merged[0].variance, np.einsum("gcc->gc", products), atol=1e-9)
    if pairs:
        assert np.allclose(merged[0].covariance, products, atol=1e-9)


def test_reading_does_not_change_them():
    moments = of(torch.randn(1, 20, 400), pairs=True)
    first = moments.covariance
    assert torch.equal(first, moments.covariance)
    assert torch.equal(first, first.mT)
    assert torch.equal(moments.variance, first.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("value", [0.1, 1e7 + 1, -3e-30])
def test_constants_deviate_by_exactly_nothing(value):
    rows = torch.full((1, 333, 2), value)
    moments = of(rows[:, :100], pairs=True)
    moments.add(rows[:, 100:])
    assert float(moments.covariance.abs().max()) == 0
    assert float(moments.mean[0, 0]) == float(rows[0, 0, 0])


def test_nothing_at_all():
    moments = Moments(1, 2, pairs=True)
    moments.add(torch.empty(1, 0, 2))
    moments.reduce()
    assert moments.count == 0
    assert float(moments.covariance.abs().max()) == 0
