"""Dead inputs left out, the rest damped, and singular matrices refused."""

import pytest
import torch
from layers_at_hand import layer, moments

from prunekit.errors import DataError, InputError
from prunekit.obs import damped, live_inputs


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
