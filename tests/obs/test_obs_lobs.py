"""The published form against its formula, written with loops, and against the exact one where they agree."""

import numpy as np
import pytest
import torch
from layers_at_hand import layer, moments, naive_obs

from prunekit.errors import InputError
from prunekit.obs import damped, inverse_of, refit, shared_saliency, shared_update


def made(**settings):
    x, weights = layer(**settings)
    matrix, live = damped(moments(x), 1e-3)
    return x, weights, matrix, inverse_of(matrix), live


def test_the_inverse_is_on_the_live_inputs():
    _, _, matrix, inverse, live = made(dead=(1, 8))
    expected = np.linalg.inv(matrix[live][:, live].numpy())
    torch.testing.assert_close(inverse[live][:, live], torch.from_numpy(expected))
    assert inverse[~live].eq(0).all()
    assert inverse[:, ~live].eq(0).all()


def test_saliencies_are_those_of_the_formula_and_the_least_is_what_exact_obs_removes_first():
    _, weights, matrix, inverse, _ = made()
    found = shared_saliency(inverse, weights.float())
    assert found.dtype == torch.float64
    for row in range(5):
        for q in range(24):
            expected = float(weights[row, q].float()) ** 2 / (2 * float(inverse[q, q]))
            assert float(found[row, q]) == pytest.approx(expected, rel=1e-12)
        order, losses, _ = naive_obs(matrix, weights[row])
        exact = shared_saliency(inverse, weights)[row]
        assert int(exact.argmin()) == order[0]
        assert float(exact.min()) == pytest.approx(losses[0], rel=1e-9)


def test_one_removal_in_a_row_is_the_exact_one():
    _, weights, matrix, inverse, _ = made()
    removed = torch.zeros_like(weights, dtype=torch.bool)
    removed[torch.arange(5), torch.tensor([0, 3, 23, 7, 3])] = True
    found = shared_update(inverse, weights, removed)
    torch.testing.assert_close(found, refit(matrix, weights, ~removed), rtol=1e-9, atol=1e-10)


def test_several_removals_in_a_row_are_made_up_for_each_by_itself():
    _, weights, _, inverse, _ = made(dead=(2,))
    removed = torch.rand(weights.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    removed[:, 2] = torch.tensor([True, False, True, False, True])
    expected = weights.clone().numpy()
    for row, q in removed.nonzero().tolist():
        if q != 2:
            expected[row] -= float(weights[row, q] / inverse[q, q]) * inverse[:, q].numpy()
    expected[removed.numpy()] = 0
    found = shared_update(inverse, weights, removed)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-10)
    assert found[1, 2] == weights[1, 2]
    assert shared_update(inverse, weights.float(), removed).dtype == torch.float32


def test_dead_inputs_cost_nothing():
    _, weights, _, inverse, _ = made(dead=(2,))
    assert shared_saliency(inverse, weights)[:, 2].eq(0).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"weights must be \(rows, 3\)"):
        shared_saliency(torch.eye(3), torch.ones(2, 4))
    with pytest.raises(InputError, match="mask of booleans"):
        shared_update(torch.eye(3), torch.ones(2, 3), torch.ones(2, 3))
