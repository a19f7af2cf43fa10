"""The oracle against the naive loop: outgoing weights to zero, the whole network run again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import InputError
from prunekit.graph import chain_of
from prunekit.losses import squared_error
from prunekit.units import absolute_error, eliminate, gain_derivatives, oracle_changes
from unit_nets import ERRORS, NETS, made, mlp, naive_changes
from unit_recipes import conv_net, data, net


def same(found, expected, error_now):
    """To 1e-10 of each change, beyond the digits that the naive difference of two errors has lost."""
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=2e-15 * (1 + error_now))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("net", NETS)
def test_equals_the_naive_loop(net, error):
    model, inputs, targets = made(net)
    found = oracle_changes(chain_of(model, inputs=True), inputs, targets, ERRORS[error])
    now = float(ERRORS[error](model(inputs), targets))
    same(found, naive_changes(model, inputs, targets, ERRORS[error]), now)


@pytest.mark.parametrize("net", ["2 hidden", "conv", "odd"])
@pytest.mark.parametrize("budget", [1, 20_000, 200_000])
def test_chunks_do_not_change_the_result(net, budget):
    model, inputs, targets = made(net, examples=23)
    chain = chain_of(model, inputs=True)
    whole = oracle_changes(chain, inputs, targets, "cross_entropy")
    for name, changes in oracle_changes(chain, inputs, targets, "cross_entropy", budget_bytes=budget).items():
        torch.testing.assert_close(changes, whole[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("net", ["2 hidden", "5 hidden", "conv", "odd"])
def test_units_that_are_off_stay_off(net):
    model, inputs, targets = made(net)
    chain = chain_of(model)
    kept = {group.name: torch.rand(group.units) > 0.4 for group in chain.groups}
    found = oracle_changes(chain, inputs, targets, squared_error, kept=kept)
    with torch.no_grad():
        for group in chain.groups:
            off = (~kept[group.name]).repeat_interleave(group.repeat)
            model.get_parameter(f"{group.consumer}.weight")[:, off] = 0
    expected = naive_changes(model, inputs, targets, squared_error)
    for name, changes in found.items():
        assert changes.isnan().tolist() == (~kept[name]).tolist()
        torch.testing.assert_close(changes[kept[name]], expected[name][kept[name]], rtol=1e-10, atol=1e-14)


def test_a_group_without_units_left():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    off = torch.zeros(8, dtype=torch.bool)
    found = oracle_changes(chain, inputs, targets, squared_error, kept={"0": off})
    assert found["0"].isnan().all()
    assert not found["2"].isnan().any()


def test_linear_layers_on_sequences():
    model = made("functions")[0]
    inputs, targets = torch.randn(20, 3, 6, dtype=torch.float64), torch.rand(20, 3, 4, dtype=torch.float64)
    for error in (squared_error, absolute_error):
        found = oracle_changes(chain_of(model, inputs=True), inputs, targets, error)
        same(found, naive_changes(model, inputs, targets, error), 3.0)


def test_regression_with_several_outputs_per_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3)).double()
    inputs = torch.randn(9, 2, 8, 8, dtype=torch.float64)
    targets = torch.randn(9, 2, 4, 4, dtype=torch.float64)
    found = oracle_changes(chain_of(model, inputs=True), inputs, targets, squared_error)
    same(found, naive_changes(model, inputs, targets, squared_error), 10.0)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_cross_entropy_with_large_outputs(scale):
    model, inputs, targets = made("1 hidden")
    model = model[:-1]
    with torch.no_grad():
        model[-1].weight.mul_(scale)
    found = oracle_changes(chain_of(model), inputs, targets, F.cross_entropy)
    same(found, {"0": naive_changes(model, inputs, targets, F.cross_entropy)["0"]}, scale)


def test_float32_keeps_more_digits_than_a_difference_of_errors():
    torch.manual_seed(0)
    model = mlp([20, 50, 10], last=nn.Sigmoid)
    inputs, targets = torch.rand(500, 20), torch.randint(0, 10, (500,))
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    found = oracle_changes(chain_of(model), inputs, targets, squared_error)["0"]
    naive = naive_changes(model, inputs, targets, squared_error)["0"]
    true = naive_changes(model.double(), inputs.double(), targets, squared_error)["0"]
    assert (found - true).abs().max() < 0.2 * (naive - true).abs().max()


def test_the_model_and_the_data_are_left_as_they_were():
    model, inputs, targets = made("odd")
    model[1].train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    given = inputs.clone()
    model.requires_grad_(True)
    chain = chain_of(model, inputs=True)
    found = oracle_changes(chain, inputs, targets, squared_error)
    derived = gain_derivatives(chain, inputs, targets, squared_error)
    course = eliminate(chain, inputs, targets, squared_error, count=3)
    assert not any(each.requires_grad for each in found.values())
    assert not any(each.first.requires_grad or each.second.requires_grad for each in derived.values())
    assert not course.errors.requires_grad
    assert model[1].training
    assert not model[0].training
    assert torch.equal(inputs, given)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


def test_what_cannot_be_accepted():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    with pytest.raises(InputError, match="same first dimension"):
        oracle_changes(chain, inputs, targets[:-1], squared_error)
    with pytest.raises(InputError, match="no examples"):
        oracle_changes(chain, inputs[:0], targets[:0], squared_error)
    with pytest.raises(InputError, match="no group of units 'x'"):
        oracle_changes(chain, inputs, targets, squared_error, groups=["x"])
    with pytest.raises(InputError, match="must be a boolean tensor"):
        oracle_changes(chain, inputs, targets, squared_error, kept={"0": torch.ones(8)})
    with pytest.raises(InputError, match="there is no error 'squared'"):
        oracle_changes(chain, inputs, targets, "squared")
    with pytest.raises(InputError, match="cannot be taken of these outputs"):
        oracle_changes(chain, inputs, torch.rand(30, 5, dtype=torch.float64), squared_error)
    with pytest.raises(InputError, match="cannot be taken of these outputs"):
        oracle_changes(chain, inputs, targets + 4, "cross_entropy")
    with pytest.raises(InputError, match="does not take inputs of the shape"):
        oracle_changes(chain, inputs[:, 1:], targets, squared_error)
    with pytest.raises(InputError, match="no group of units"):
        oracle_changes(chain_of(nn.Sequential(nn.Linear(9, 4))), inputs, targets, squared_error)


def test_absolute_error_by_hand():
    outputs = torch.tensor([[1.0, 3.0], [0.0, -1.0]])
    assert absolute_error(outputs, torch.tensor([[0.0, 1.0], [0.0, 1.0]])) == (1 + 2 + 0 + 2) / 2
    assert absolute_error(outputs, torch.tensor([0, 1])) == (0 + 3 + 0 + 2) / 2
    with pytest.raises(ValueError, match="differ in shape"):
        absolute_error(outputs, torch.zeros(2, 1))


@pytest.mark.parametrize("processes", [2, 3, 50])
@pytest.mark.parametrize(("model", "shape"), [(net(6, 7, 5, 4), (6,)), (conv_net(), (1, 8, 8))])
def test_several_processes_give_the_same_as_one(model, shape, processes):
    torch.set_num_threads(1)
    inputs, targets = data(*shape, count=25)
    chain = chain_of(model)
    kept = {chain.groups[0].name: torch.arange(chain.groups[0].units) != 1}
    one, several = (
        oracle_changes(chain, inputs, targets, "cross_entropy", kept=kept, processes=number)
        for number in (1, processes)
    )
    assert list(one) == list(several)
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=1e-10, atol=1e-14, equal_nan=True)


def test_no_process():
    model, (inputs, targets) = net(6, 7, 4), data(6)
    with pytest.raises(InputError, match="processes = 0: at least one is needed"):
        oracle_changes(chain_of(model), inputs, targets, "cross_entropy", processes=0)
