"""Rows on a grid by second order with the bits of values: every choice by brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import DataError, InputError
from prunekit.obs import Grid, damped, rate_aware

SIZES = torch.tensor([3.0, 1.7, 0.0, 1.5, 3.5], dtype=torch.float64)
VALUES = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.1], dtype=torch.float64)


def problem(seed: int, columns: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor, Grid]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, columns, generator=generator, dtype=torch.float64)
    mixed = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    matrix, _ = damped(mixed.T @ mixed / 40, 0.01)
    weights = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 0.6
    flags = torch.randn(rows, columns, generator=generator, dtype=torch.float64) + 1
    return matrix, weights, Grid(VALUES, flags, SIZES)


def bits_of(grid: Grid, row: int, column: int, place: int) -> float:
    flag = grid.flags[row, column].item() if grid.values[place] else 0.0
    return flag + grid.sizes[place].item()


def loss_of(matrix, old, new, bits, rate):
    moved = np.asarray(new) - np.asarray(old)
    return moved @ matrix.numpy() @ moved / 2 + rate * bits


def all_choices(grid: Grid, row: int, columns: int):
    for places in itertools.product(range(len(VALUES)), repeat=columns):
        bits = sum(bits_of(grid, row, column, place) for column, place in enumerate(places))
        yield places, bits


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.0, 0.01, 0.1, 1.0]))
def test_with_a_diagonal_hessian_the_choice_is_the_least_of_all(seed, columns, rate):
    matrix, weights, grid = problem(seed, columns)
    matrix = torch.diag(matrix.diagonal())
    found = rate_aware(matrix, weights, grid, rate)
    total = 0.0
    for row, old in enumerate(weights.numpy()):
        losses = {
            places: loss_of(matrix, old, VALUES.numpy()[list(places)], bits, rate)
            for places, bits in all_choices(grid, row, columns)
        }
        total += min(losses.values())
        assert losses[tuple(found.chosen[row].tolist())] == pytest.approx(min(losses.values()), rel=1e-9)
    assert found.loss == pytest.approx(total, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_without_a_rate_it_is_gptq_with_an_inverse_for_each_column(seed, columns):
    matrix, weights, grid = problem(seed, columns)
    found = rate_aware(matrix, weights, grid, 0.0)
    for row, old in enumerate(weights.numpy()):
        left = old.copy()
        for column in range(columns):
            inverse = np.linalg.inv(matrix.numpy()[column:, column:])
            value = VALUES.numpy()[np.abs(VALUES.numpy() - left[column]).argmin()]
            left[column:] -= (left[column] - value) / inverse[0, 0] * inverse[:, 0]
        np.testing.assert_allclose(VALUES[found.chosen[row]].numpy(), left, atol=1e-9)


def by_hand(matrix, old, grid, row, rate, support, variance):
    """Each place in turn: the value with the least that the free places behind it leave, by solving for them.

    The free places pay for the bits of a normal distribution.
    """
    hessian, fixed = matrix.numpy(), {}
    for column in range(len(old)):
        if column not in support:
            fixed[column] = 0.0
    curved = rate / (math.log(2) * variance) if variance else 0.0
    spent = 0.0
    for column in support:
        losses = []
        for place, value in enumerate(VALUES.tolist()):
            trial = {**fixed, column: value}
            free = [each for each in support if each not in trial]
            known = sorted(trial)
            moved = np.array([trial[each] - old[each] for each in known])
            new = np.zeros(len(old))
            new[known] = [trial[each] for each in known]
            if free:
                inner = hessian[np.ix_(free, free)]
                right = inner @ old[free] - hessian[np.ix_(free, known)] @ moved
                new[free] = np.linalg.solve(inner + curved * np.eye(len(free)), right)
            bits = spent + bits_of(grid, row, column, place)
            losses.append(loss_of(matrix, old, new, bits, rate) + curved / 2 * (new[free] ** 2).sum())
        best = int(np.argmin(losses))
        fixed[column] = VALUES[best].item()
        spent += bits_of(grid, row, column, best)
    return [fixed[column] for column in range(len(old))]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=3, max_size=3),
)
def test_each_choice_is_the_least_given_those_before_it_and_free_weights_behind_it(seed, columns, rate, mask):
    matrix, weights, grid = problem(seed, columns)
    on = torch.tensor(mask)[:, :columns]
    on[0] = True
    weights = weights * on
    variance = float(np.var(weights[on].numpy()))
    found = rate_aware(matrix, weights, grid, rate, mask=on, budget_bytes=1)
    for row, old in enumerate(weights.numpy()):
        support = on[row].nonzero().flatten().tolist()
        wanted = by_hand(matrix, old, grid, row, rate, support, variance)
        np.testing.assert_allclose(VALUES[found.chosen[row]].numpy(), wanted)
        least = min(
            loss_of(matrix, old, VALUES.numpy()[list(places)], bits, rate)
            for places, bits in all_choices(grid, row, columns)
        )
        new = VALUES[found.chosen[row]].numpy()
        bits = sum(bits_of(grid, row, each, place) for each, place in enumerate(found.chosen[row].tolist()))
        assert loss_of(matrix, old, new, bits, rate) >= least - 1e-12


def test_inputs_that_are_always_zero_take_what_is_cheapest_and_more_rate_means_fewer_bits():
    matrix, weights, grid = problem(5, 6, rows=8)
    dead = matrix.clone()
    dead[2], dead[:, 2] = 0, 0
    grid = Grid(VALUES, grid.flags.abs(), SIZES)
    assert (VALUES[rate_aware(dead, weights, grid, 0.1).chosen][:, 2] == 0).all()
    assert torch.isfinite(torch.tensor(rate_aware(dead, weights, grid, 0.0).loss))
    counts = [
        int((VALUES[rate_aware(matrix, weights, grid, rate).chosen] != 0).sum()) for rate in (0, 0.2, 9)
    ]
    assert counts[0] > counts[1] > counts[2] == 0


def test_what_does_not_fit_is_refused():
    matrix, weights, grid = problem(0, 3)
    with pytest.raises(InputError, match="a grid needs the value 0 once"):
        rate_aware(matrix, weights, Grid(VALUES + 2, grid.flags, SIZES), 0.1)
    with pytest.raises(InputError, match="a grid needs the value 0 once"):
        rate_aware(matrix, weights, Grid(VALUES, grid.flags[:1], SIZES), 0.1)
    for rate in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="rate must be a finite number"):
            rate_aware(matrix, weights, grid, rate)
    with pytest.raises(DataError, match="singular"):
        rate_aware(torch.ones(3, 3, dtype=torch.float64), weights, grid, 0.0)
