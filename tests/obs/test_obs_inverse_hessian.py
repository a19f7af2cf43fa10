"""Dead inputs left out, the rest damped, singular matrices refused; an inverse built up from samples."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers_at_hand import layer, moments
from torch import nn

from examples import number_of_examples
from prunekit.errors import DataError, InputError
from prunekit.obs import damped, eliminate, live_inputs, recursive_inverse, shared_saliency


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
