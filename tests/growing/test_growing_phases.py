"""S against its definition, its gradient against finite differences and the paper's formula."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cascade_problems import NUMPY_ACTIVATIONS, curves, numpy_outputs, numpy_s, numpy_values, parity

from prunekit.errors import InputError
from prunekit.growing import CascadeSettings, correlation, grow
from prunekit.growing.network import UNIT_ACTIVATIONS
from prunekit.growing.phases import best_candidate

ACTIVATIONS = sorted(UNIT_ACTIVATIONS)


def test_s_of_a_pool_equals_the_definition_for_each_candidate():
    rng = np.random.default_rng(0)
    values, errors = rng.normal(size=(20, 4)) + 3, rng.normal(size=(20, 3)) - 2
    found = correlation(torch.from_numpy(values), torch.from_numpy(errors))
    np.testing.assert_allclose(found, [numpy_s(v, errors) for v in values.T], rtol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_of_s_by_the_weights(activation: str):
    rng = np.random.default_rng(1)
    inputs, errors, weight = rng.normal(size=(15, 4)), rng.normal(size=(15, 2)), rng.normal(size=4)

    def s(w: np.ndarray) -> float:
        return numpy_s(NUMPY_ACTIVATIONS[activation](inputs @ w), errors)

    step = 1e-5
    differences = [(s(weight + step * unit) - s(weight - step * unit)) / (2 * step) for unit in np.eye(4)]
    variable = torch.from_numpy(weight).requires_grad_()
    values = UNIT_ACTIVATIONS[activation](torch.from_numpy(inputs) @ variable)
    correlation(values[:, None], torch.from_numpy(errors)).sum().backward()
    np.testing.assert_allclose(variable.grad, differences, rtol=1e-6)


def test_gradient_of_s_is_the_papers():
    # dS/dw_i = sum_p,o sign_o (E_p,o - mean E_o) f'_p I_i,p
    rng = np.random.default_rng(2)
    inputs, errors, weight = rng.normal(size=(15, 4)), rng.normal(size=(15, 2)), rng.normal(size=4)
    value = np.tanh(inputs @ weight)
    centred = errors - errors.mean(0)
    sign = np.sign((value - value.mean()) @ centred)
    expected = (centred @ sign * (1 - value**2)) @ inputs
    variable = torch.from_numpy(weight).requires_grad_()
    correlation(torch.tanh(torch.from_numpy(inputs) @ variable)[:, None], torch.from_numpy(errors)).backward()
    np.testing.assert_allclose(variable.grad, expected, rtol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_s_in_the_history_is_that_of_the_installed_unit(activation: str):
    x, y = curves()
    settings = [
        CascadeSettings(max_units=units, activation=activation, candidate_epochs=40) for units in range(3)
    ]
    runs = [grow(each, x, y, seed=3) for each in settings]
    for before, after in pairwise(runs):
        errors = numpy_outputs(before.network.state_dict(), x.numpy(), activation) - y.numpy()
        newest = numpy_values(after.network.state_dict(), x.numpy(), activation)[:, -1]
        assert after.history[-1].correlation == pytest.approx(numpy_s(newest, errors), rel=1e-9)


def test_s_in_the_history_under_cross_entropy_is_of_the_probabilities():
    x, y = parity(4)
    before, after = (
        grow(CascadeSettings(max_units=units, loss="cross_entropy"), x, y, seed=0) for units in (0, 1)
    )
    raw = np.exp(numpy_outputs(before.network.state_dict(), x.numpy(), "logistic"))
    errors = raw / raw.sum(1, keepdims=True) - np.eye(2)[y.numpy()]
    newest = numpy_values(after.network.state_dict(), x.numpy(), "logistic")[:, -1]
    assert after.history[-1].correlation == pytest.approx(numpy_s(newest, errors), rel=1e-9)


@pytest.mark.parametrize("optimizer", ["rprop", "adam"])
def test_training_a_pool_raises_s_and_its_best_value_is_kept(optimizer: str):
    x, y = curves()
    found = []
    for epochs in (1, 5, 50, 200):
        settings = CascadeSettings(candidate_epochs=epochs, candidate_optimizer=optimizer)
        found.append(best_candidate(x, y, settings, torch.Generator().manual_seed(0)).correlation)
    assert found == sorted(found)
    assert found[-1] > 1.5 * found[0]


@pytest.mark.parametrize(("values", "errors"), [((5,), (5, 1)), ((5, 2), (4, 1)), ((5, 2), (5,))])
def test_wrong_shapes_are_refused(values: tuple[int, ...], errors: tuple[int, ...]):
    with pytest.raises(InputError, match="values must be"):
        correlation(torch.zeros(values), torch.zeros(errors))
