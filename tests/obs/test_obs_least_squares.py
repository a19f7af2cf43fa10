"""Dead inputs, damping, survivors against numpy on the samples, and an inverse built up from samples."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers_at_hand import layer, moments, naive_obs
from torch import nn

from examples import number_of_examples
from prunekit.errors import DataError, InputError
from prunekit.obs import (
    damped,
    eliminate,
    inverse_of,
    live_inputs,
    recursive_inverse,
    refit,
    shared_saliency,
    shared_update,
)


def test_the_damping_is_relative_to_the_mean_of_the_live_diagonal():
    hessian = moments(layer(dead=(2, 11))[0])
    matrix, live = damped(hessian, 0.05)
    assert (~live).nonzero().flatten().tolist() == [2, 11]
    added = 0.05 * hessian.diagonal().sum() / 22
    expected = hessian + torch.diag(added * live)
    torch.testing.assert_close(matrix, expected, rtol=1e-12, atol=0)
    assert matrix[2].eq(0).all()
    assert matrix[:, 11].eq(0).all()
    assert live_inputs(matrix).equal(live)


def test_an_input_that_varies_by_rounding_only_is_dead():
    hessian = moments(layer()[0])
    hessian[5] *= 1e-9
    hessian[:, 5] *= 1e-9
    assert (~damped(hessian, 0.01)[1]).nonzero().flatten().tolist() == [5]
    hessian[5, 5] = -1e-20  # a variance, rounded
    assert (~damped(hessian, 0.01)[1]).nonzero().flatten().tolist() == [5]


def test_float32_moments_come_back_symmetric_in_float64():
    hessian = moments(layer()[0]).float()
    hessian[0, 1] += 1e-4
    matrix, _ = damped(hessian, 0.0)
    assert matrix.dtype == torch.float64
    assert matrix.equal(matrix.T)


@pytest.mark.parametrize("samples", [1, 10, 23])
def test_fewer_samples_than_inputs_need_a_damp(samples):
    hessian = moments(layer(samples=samples)[0])
    with pytest.raises(DataError, match="fewer samples than inputs; give a damp > 0"):
        damped(hessian, 0.0)
    matrix, live = damped(hessian, 1e-4)
    assert live.all()
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_an_input_that_repeats_another_is_singular_but_for_a_damp():
    x, _ = layer()
    x[:, 7] = 3 * x[:, 4]
    with pytest.raises(DataError, match="singular"):
        damped(moments(x), 0.0)
    damped(moments(x), 1e-8)


def test_nothing_live_is_no_error():
    matrix, live = damped(torch.zeros(4, 4), 0.01)
    assert not live.any()
    assert matrix.eq(0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_refused(value):
    hessian = moments(layer()[0])
    hessian[1, 2] = value
    with pytest.raises(DataError, match="not finite"):
        damped(hessian, 0.01)


def test_what_is_no_matrix_of_second_moments_is_refused():
    with pytest.raises(DataError, match="negative diagonal element -2"):
        damped(torch.diag(torch.tensor([1.0, -2.0])), 0.01)
    with pytest.raises(InputError, match=r"square matrix, got the shape \(2, 3\)"):
        damped(torch.ones(2, 3), 0.01)


@pytest.mark.parametrize("damp", [-1e-3, float("nan"), float("inf")])
def test_a_damp_that_is_no_fraction_is_refused(damp):
    with pytest.raises(InputError, match="damp must be a finite number >= 0"):
        damped(torch.eye(3), damp)


def direct(rows, count, alpha):
    hessian = rows.double().numpy().T @ rows.double().numpy() / count
    return torch.from_numpy(np.linalg.inv(hessian + alpha * np.eye(rows.shape[1])))


@number_of_examples(30)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 50), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_any_block_gives_the_direct_inverse(rows, weights, block, alpha):
    jacobians = torch.randn((rows, weights), generator=torch.Generator().manual_seed(rows * 100 + weights))
    found = recursive_inverse(jacobians, rows, alpha, block=block)
    torch.testing.assert_close(found, direct(jacobians, rows, alpha), rtol=1e-8, atol=1e-8 / alpha)


def test_one_row_at_a_time_is_the_published_recursion():
    drawn = torch.Generator().manual_seed(0)
    jacobians = torch.randn((30, 12), generator=drawn, dtype=torch.float64)
    expected = torch.eye(12, dtype=torch.float64) / 1e-3
    for x in jacobians:
        expected = expected - (expected @ x).outer(expected @ x) / (30 + x @ expected @ x)
    torch.testing.assert_close(recursive_inverse(jacobians, 30, 1e-3, block=1), expected)
    blocks = (jacobians[at : at + 7] for at in range(0, 30, 7))
    torch.testing.assert_close(recursive_inverse(blocks, 30, 1e-3), expected)


def test_obs_of_a_whole_network_is_one_row_of_the_same_elimination():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    weights = torch.cat([each.detach().flatten() for each in model.parameters()])
    rows = []
    for each in x:
        model.zero_grad()
        model(each[None]).sum().backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    jacobians = torch.stack(rows)
    inverse = recursive_inverse(jacobians, len(x), 1e-4)
    saliency = shared_saliency(inverse, weights[None])[0]
    hessian = jacobians.T @ jacobians / len(x) + 1e-4 * torch.eye(len(weights), dtype=torch.float64)
    found = eliminate(hessian, weights[None], dtype=torch.float64)
    assert found.order[0, 0] == saliency.argmin()
    assert float(found.losses[0, 0]) == pytest.approx(float(saliency.min()), rel=1e-8)


def test_what_is_no_jacobian_is_refused():
    rows = torch.ones(3, 2)
    with pytest.raises(InputError, match="alpha must be positive"):
        recursive_inverse(rows, 3, 0.0)
    with pytest.raises(InputError, match="number of samples must be >= 1"):
        recursive_inverse(rows, 0, 1e-4)
    with pytest.raises(InputError, match=r"rows with 2 weights, then \(3, 4\)"):
        recursive_inverse([rows, torch.ones(3, 4)], 3, 1e-4)
    with pytest.raises(DataError, match="no Jacobians"):
        recursive_inverse([], 3, 1e-4)
    with pytest.raises(DataError, match="not finite"):
        recursive_inverse(rows * float("nan"), 3, 1e-4)


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


def test_in_turn_each_removal_is_from_what_the_ones_before_it_have_left():
    """The loop of the authors' code: one order of the whole layer by the first saliencies, one inverse."""
    _, weights, _, inverse, _ = made(dead=(2,))
    removed = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    saliency = (weights.square() / (2 * inverse.diagonal())).numpy()
    expected, diagonal = weights.clone().numpy(), inverse.diagonal().numpy()
    for place in np.argsort(np.nan_to_num(saliency, posinf=0), axis=None, kind="stable"):
        row, q = divmod(int(place), weights.shape[1])
        if removed[row, q] and q != 2:
            expected[row] -= expected[row, q] / diagonal[q] * inverse[:, q].numpy()
    expected[removed.numpy()] = 0
    found = shared_update(inverse, weights, removed, in_turn=True)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-10)
    assert not torch.allclose(found, shared_update(inverse, weights, removed), rtol=1e-3)
    assert shared_update(inverse, weights.float(), removed, in_turn=True).dtype == torch.float32


def test_dead_inputs_cost_nothing():
    _, weights, _, inverse, _ = made(dead=(2,))
    assert shared_saliency(inverse, weights)[:, 2].eq(0).all()


def test_what_does_not_fit_the_published_form_is_refused():
    with pytest.raises(InputError, match=r"weights must be \(rows, 3\)"):
        shared_saliency(torch.eye(3), torch.ones(2, 4))
    with pytest.raises(InputError, match="mask of booleans"):
        shared_update(torch.eye(3), torch.ones(2, 3), torch.ones(2, 3))
