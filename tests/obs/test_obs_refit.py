"""Refitted survivors against numpy's least squares on the samples themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers_at_hand import layer, moments

from examples import number_of_examples
from prunekit.errors import DataError, InputError
from prunekit.obs import damped, refit


def least_squares(x, weights, mask):
    """Each row's best weights on its support, from the samples."""
    found = np.zeros(weights.shape)
    for row, on in enumerate(mask.numpy()):
        target = (x @ weights[row]).numpy()
        found[row, on] = np.linalg.lstsq(x.numpy()[:, on], target, rcond=None)[0]
    return torch.from_numpy(found)


@pytest.mark.parametrize("budget", [1, 10_000, 2**26])
def test_the_refit_is_the_least_squares_solution_at_every_density(budget):
    x, weights = layer(rows=25)
    mask = torch.rand((25, 24), generator=torch.Generator().manual_seed(1)) < torch.arange(25)[:, None] / 24
    assert mask.sum(1)[[0, -1]].tolist() == [0, 24]
    found = refit(damped(moments(x), 0.0)[0], weights, mask, budget_bytes=budget)
    torch.testing.assert_close(found, least_squares(x, weights, mask), rtol=1e-9, atol=1e-10)
    assert found[~mask].eq(0).all()


def test_a_damp_is_least_squares_with_a_ridge_towards_the_old_weights():
    x, weights = layer(rows=8, samples=15)
    mask = torch.rand((8, 24), generator=torch.Generator().manual_seed(2)) < 0.6
    matrix, _ = damped(moments(x), 0.1)
    ridge = (0.1 * moments(x).diagonal().mean() * len(x)).sqrt()
    rows = torch.cat([x, ridge * torch.eye(24, dtype=torch.float64)])
    torch.testing.assert_close(
        refit(matrix, weights, mask), least_squares(rows, weights, mask), rtol=1e-8, atol=1e-9
    )


def test_weights_of_dead_inputs_stay_where_they_are_kept():
    x, weights = layer(dead=(0, 9))
    mask = torch.rand((5, 24), generator=torch.Generator().manual_seed(3)) < 0.5
    mask[:, 0], mask[:, 9] = True, False
    found = refit(damped(moments(x), 0.0)[0], weights, mask)
    assert found[:, 0].equal(weights[:, 0])
    live = torch.tensor([column not in (0, 9) for column in range(24)])
    torch.testing.assert_close(
        found[:, live], least_squares(x[:, live], weights[:, live], mask[:, live]), rtol=1e-9, atol=1e-10
    )


def test_nothing_removed_changes_nothing_and_the_type_stays():
    x, weights = layer(rows=3)
    weights = weights.float()
    found = refit(damped(moments(x), 0.01)[0], weights, torch.ones(3, 24, dtype=torch.bool))
    assert found.equal(weights)
    none = refit(damped(moments(x), 0.01)[0], weights, torch.zeros(3, 24, dtype=torch.bool))
    assert none.eq(0).all()
    assert none.dtype == torch.float32


@number_of_examples(30)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_no_other_values_on_the_support_do_better(rows, inputs, seed):
    x, weights = layer(inputs=inputs, rows=rows, samples=inputs + 5, seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    mask = torch.rand((rows, inputs), generator=drawn) < torch.rand(rows, 1, generator=drawn)
    matrix, _ = damped(moments(x), 1e-3)
    found = refit(matrix, weights, mask)
    assert found[~mask].eq(0).all()
    gradient = ((found - weights) @ matrix)[mask]
    assert gradient.abs().max() <= 1e-8 * (weights @ matrix).abs().max() if len(gradient) else True


def test_what_does_not_fit_is_refused():
    matrix = torch.eye(4)
    with pytest.raises(InputError, match=r"weights must be \(rows, 4\)"):
        refit(matrix, torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(InputError, match=r"a mask of booleans .*\(2, 4\) is needed, got float32"):
        refit(matrix, torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(DataError, match="singular"):
        refit(torch.ones(4, 4), torch.ones(2, 4), torch.eye(4)[:2].bool() | torch.eye(4)[2:].bool())
