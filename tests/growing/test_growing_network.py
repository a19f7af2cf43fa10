"""The network by itself: its values, its names, its installation of units, saving and loading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cascade_problems import NUMPY_ACTIVATIONS, curves, numpy_outputs
from safetensors.torch import load_file, save_file

from prunekit.errors import InputError
from prunekit.growing import CascadeNetwork, CascadeSettings, grow


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
