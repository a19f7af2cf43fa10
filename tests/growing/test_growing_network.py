"""The network: its values, its names, its installation of units, saving and loading; S by its definition."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from cascade_problems import NUMPY_ACTIVATIONS, curves, numpy_outputs, numpy_s, numpy_values, parity
from safetensors.torch import load_file, save_file

from prunekit.errors import InputError
from prunekit.growing import CascadeNetwork, CascadeSettings, correlation, grow
from prunekit.growing.network import UNIT_ACTIVATIONS, best_candidate

ACTIVATIONS = sorted(UNIT_ACTIVATIONS)


def filled(units: int, activation: str) -> CascadeNetwork:
    network = CascadeNetwork(3, 2, units, activation=activation, dtype=torch.float64)
    random = torch.Generator().manual_seed(units)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return network


@pytest.mark.parametrize("activation", sorted(NUMPY_ACTIVATIONS))
@pytest.mark.parametrize("units", [0, 1, 4])
def test_forward_is_the_papers_network(units: int, activation: str):
    network = filled(units, activation)
    x = np.random.default_rng(0).normal(size=(7, 3))
    expected = numpy_outputs(network.state_dict(), x, activation)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach(), expected, rtol=1e-12)


def test_names_and_shapes_of_the_state_dict():
    shapes = {name: tuple(value.shape) for name, value in CascadeNetwork(3, 2, 2).state_dict().items()}
    assert shapes == {
        "output.weight": (2, 5),
        "output.bias": (2,),
        "units.0.weight": (1, 3),
        "units.0.bias": (1,),
        "units.1.weight": (1, 4),
        "units.1.bias": (1,),
    }


def test_a_new_unit_is_what_was_given_and_changes_no_output():
    network = filled(2, "tanh")
    x = torch.randn(6, 3, dtype=torch.float64)
    before, weight = network(x), torch.randn(5, dtype=torch.float64)
    network.install(weight, torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(network(x), before)
    assert torch.equal(network.state_dict()["units.2.weight"], weight[None])
    assert float(network.state_dict()["units.2.bias"]) == 0.5
    assert len(network.units) == 3


@pytest.mark.parametrize(("weight", "bias"), [((4,), ()), ((1, 5), ()), ((5,), (2,))])
def test_a_unit_that_does_not_fit_is_refused(weight: tuple[int, ...], bias: tuple[int, ...]):
    network = filled(2, "tanh")
    with pytest.raises(InputError, match=r"unit 2 needs a weight \(5,\)"):
        network.install(torch.zeros(weight), torch.zeros(bias))
    assert len(network.units) == 2


def test_safetensors_round_trip(tmp_path: Path):
    x, y = curves()
    network = grow(CascadeSettings(max_units=3, activation="tanh"), x.float(), y.float(), seed=0).network
    save_file(network.state_dict(), tmp_path / "cascade.safetensors")
    fresh = CascadeNetwork(2, 3, 3, activation="tanh")
    fresh.load_state_dict(load_file(tmp_path / "cascade.safetensors"))
    assert torch.equal(fresh(x.float()), network(x.float()))


def test_thawed_units_can_be_trained():
    network = filled(2, "logistic").requires_grad_()
    network(torch.randn(4, 3, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_building_draws_nothing():
    state = torch.get_rng_state()
    CascadeNetwork(3, 2, 4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cascade_grows_where_its_inputs_are():
    x, y = curves()
    settings = CascadeSettings(max_units=2)
    there = grow(settings, x.cuda(), y.cuda(), validation=(x, y), seed=0)
    assert all(p.is_cuda for p in there.network.parameters())
    expected = [row.train_error for row in grow(settings, x, y, seed=0).history]
    assert [row.train_error for row in there.history] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"inputs": 0}, "inputs"),
        ({"outputs": 1.5}, "outputs"),
        ({"units": -1}, "units"),
        ({"activation": "relu"}, "activation must be one of logistic, tanh, gaussian, not 'relu'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, named: str):
    with pytest.raises(InputError, match=named):
        CascadeNetwork(**{"inputs": 2, "outputs": 1, **arguments})


# ---- the phases -------------------------------------------------------------------------------------------


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
