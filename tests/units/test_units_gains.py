"""Derivatives by gains, the recursion, skeletonization and gain sweeps against differences and loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import InputError
from prunekit.graph import chain_of
from prunekit.losses import absolute_error, squared_error
from prunekit.units import (
    diagonal_recursion,
    gain_derivatives,
    gain_sweep,
    relevance,
)
from unit_nets import ERRORS, error_at, made, mlp

SMOOTH = ["1 hidden", "2 hidden", "5 hidden", "softmax", "no activation"]
H = 1e-4


def smooth_conv():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same", padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.Tanh(),
        nn.Linear(6, 4),
    )
    inputs = torch.randn(15, 1, 10, 10, dtype=torch.float64)
    return net.double().eval(), inputs, torch.randint(0, 4, (15,))


def central(model, inputs, targets, error, name, unit):
    below, here, above = (
        error_at(model, inputs, targets, error, name, unit, gain) for gain in (1 - H, 1.0, 1 + H)
    )
    return (above - below) / (2 * H), (above - 2 * here + below) / H**2


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("net", [*SMOOTH, "conv, smooth"])
def test_derivatives_are_those_of_central_differences(net, error):
    model, inputs, targets = smooth_conv() if net == "conv, smooth" else made(net)
    found = gain_derivatives(chain_of(model, inputs=True), inputs, targets, ERRORS[error])
    for name, each in found.items():
        for unit in range(len(each.first)):
            first, second = central(model, inputs, targets, ERRORS[error], name, unit)
            assert float(each.first[unit]) == pytest.approx(first, rel=1e-5, abs=1e-7)
            if error != "linear":  # |t - o| has no second derivative where it is 0
                assert float(each.second[unit]) == pytest.approx(second, rel=1e-4, abs=1e-5)


def test_piecewise_linear_layers_away_from_their_kinks():
    model, inputs, targets = made("conv", examples=4)
    found = gain_derivatives(chain_of(model), inputs, targets, F.cross_entropy)
    close = []
    for name, each in found.items():
        for unit in range(len(each.first)):
            first, second = central(model, inputs, targets, F.cross_entropy, name, unit)
            close.append(float(each.second[unit]) == pytest.approx(second, rel=1e-4, abs=1e-5))
            assert float(each.first[unit]) == pytest.approx(first, rel=1e-3, abs=1e-6)
    assert sum(close) > 0.8 * len(close)  # a kink between gains 1 - h and 1 + h is a matter of luck


@pytest.mark.parametrize("net", ["2 hidden", "conv"])
def test_chunks_and_units_that_are_off(net):
    model, inputs, targets = made(net)
    chain = chain_of(model)
    kept = {group.name: torch.rand(group.units) > 0.3 for group in chain.groups}
    found = gain_derivatives(chain, inputs, targets, squared_error, kept=kept, budget_bytes=30_000)
    with torch.no_grad():
        for group in chain.groups:
            off = (~kept[group.name]).repeat_interleave(group.repeat)
            model.get_parameter(f"{group.consumer}.weight")[:, off] = 0
    expected = gain_derivatives(chain, inputs, targets, squared_error)
    for name, each in found.items():
        on = kept[name]
        torch.testing.assert_close(each.first[on], expected[name].first[on], rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(each.second[on], expected[name].second[on], rtol=1e-10, atol=1e-13)
        assert each.first[~on].isnan().all()
        assert each.second[~on].isnan().all()


def test_what_they_predict():
    model, inputs, targets = made("1 hidden")
    found = gain_derivatives(chain_of(model), inputs, targets, squared_error)["0"]
    assert torch.equal(found.first_order, -found.first)
    assert torch.equal(found.second_order, -found.first + 0.5 * found.second)
    only = gain_derivatives(chain_of(model), inputs, targets, squared_error, second=False)["0"]
    assert torch.equal(only.first, found.first)
    with pytest.raises(ValueError, match="not asked for"):
        _ = only.second_order


def test_a_quadratic_error_is_predicted_exactly():
    model, inputs, targets = made("no activation")
    for name, each in gain_derivatives(chain_of(model), inputs, targets, squared_error).items():
        for unit, predicted in enumerate(each.second_order.tolist()):
            off, on = (error_at(model, inputs, targets, squared_error, name, unit, g) for g in (0.0, 1.0))
            assert predicted == pytest.approx(off - on, rel=1e-10)


def one_at_a_time(model, inputs, targets):
    """The recursion as written in the paper: loops over examples and units, σ = logistic, squared error."""
    layers = [each for each in model if isinstance(each, nn.Linear)]
    sums = [torch.zeros(layer.in_features, dtype=torch.float64) for layer in layers[1:]]
    for x, t in zip(inputs, F.one_hot(targets, 4).double(), strict=True):
        outs = [x]
        for layer in layers:
            outs.append(torch.sigmoid(layer.weight @ outs[-1] + layer.bias))
        first, second = 2 * (outs[-1] - t), torch.full((4,), 2.0, dtype=torch.float64)
        for number in range(len(layers) - 1, 0, -1):
            o, a, w = outs[number + 1], outs[number], layers[number].weight
            d1, d2 = o * (1 - o), o * (1 - o) * (1 - 2 * o)
            by_x, by_xx = first * d1, second * d1**2 + first * d2
            first, second = torch.zeros_like(a), torch.zeros_like(a)
            for j in range(len(a)):
                for i in range(len(o)):
                    first[j] += by_x[i] * w[i, j]
                    second[j] += by_xx[i] * w[i, j] ** 2
            sums[number - 1] += a**2 * second
    return [each / len(inputs) for each in sums]


def test_the_recursion_is_that_of_the_paper():
    torch.manual_seed(0)
    model = mlp([5, 4, 3, 4], last=nn.Sigmoid).double().requires_grad_(False)
    inputs, targets = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 4, (6,))
    found = diagonal_recursion(chain_of(model), inputs, targets, squared_error)
    for each, expected in zip(found.values(), one_at_a_time(model, inputs, targets), strict=True):
        torch.testing.assert_close(each.second, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(
    ("net", "error"), [("1 hidden", "linear"), ("2 hidden", "squared"), ("5 hidden", "squared")]
)
def test_the_recursion_is_exact_on_the_last_hidden_layer_and_off_before(net, error):
    model, inputs, targets = made(net)
    published, exact = (
        [each.second for each in take(chain_of(model), inputs, targets, ERRORS[error]).values()]
        for take in (diagonal_recursion, gain_derivatives)
    )
    torch.testing.assert_close(published[-1], exact[-1], rtol=1e-9, atol=1e-300)
    for each, true in zip(published[:-1], exact[:-1], strict=True):
        assert (each - true).abs().sum() > 1e-3 * true.abs().sum()


def test_the_recursion_drops_the_softmax_products():
    model, inputs, targets = made("2 hidden")
    found = diagonal_recursion(chain_of(model), inputs, targets, F.cross_entropy)["2"].second
    exact = gain_derivatives(chain_of(model), inputs, targets, F.cross_entropy)["2"].second
    with torch.no_grad():
        a = model[:4](inputs)
        p = model(inputs).softmax(1)
    w = model[4].weight
    products = torch.zeros(7, dtype=torch.float64)
    for j in range(7):
        for k in range(4):
            for m in range(4):
                if k != m:
                    products[j] -= (a[:, j] ** 2 * p[:, k] * p[:, m] * w[k, j] * w[m, j]).mean()
    torch.testing.assert_close(found + products, exact, rtol=1e-10, atol=1e-13)


def test_first_derivatives_of_the_recursion_and_units_that_are_off():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    kept = {"2": torch.tensor([True, False, True, True, False, True, True])}
    found = diagonal_recursion(chain, inputs, targets, squared_error, kept=kept, budget_bytes=20_000)
    exact = gain_derivatives(chain, inputs, targets, squared_error, kept=kept)
    for name in exact:
        torch.testing.assert_close(found[name].first, exact[name].first, equal_nan=True)
    torch.testing.assert_close(found["2"].second, exact["2"].second, equal_nan=True)
    with torch.no_grad():
        model[4].weight[:, ~kept["2"]] = 0
    again = diagonal_recursion(chain, inputs, targets, squared_error)
    torch.testing.assert_close(found["0"].second, again["0"].second)


def test_what_the_recursion_is_not_for():
    model, inputs, targets = made("conv")
    with pytest.raises(InputError, match="the units of '0' are followed by something else"):
        diagonal_recursion(chain_of(model), inputs, targets, squared_error)
    model, inputs, targets = made("2 hidden")
    with pytest.raises(InputError, match="the recursion is for the errors"):
        diagonal_recursion(chain_of(model), inputs, targets, ERRORS["other"])


def batches(inputs, targets, size=10):
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def test_relevance_is_the_running_average_of_central_differences():
    model, inputs, targets = made("2 hidden")
    found = relevance(chain_of(model), batches(inputs, targets))
    h = 1e-5
    for name, values in found.items():
        for unit in range(len(values)):
            running = None
            for x, t in batches(inputs, targets):
                below, above = (
                    error_at(model, x, t, absolute_error, name, unit, gain) for gain in (1 - h, 1 + h)
                )
                rho = -(above - below) / (2 * h)
                running = rho if running is None else 0.8 * running + 0.2 * rho
            assert float(values[unit]) == pytest.approx(running, rel=1e-5, abs=1e-7)


def test_relevance_of_what_cannot_be_accepted():
    model, inputs, targets = made("1 hidden")
    with pytest.raises(InputError, match="no batches"):
        relevance(chain_of(model), [])
    with pytest.raises(InputError, match="decay"):
        relevance(chain_of(model), batches(inputs, targets), decay=1.0)


@pytest.mark.parametrize("error", ["squared", "xent"])
@pytest.mark.parametrize("net", ["1 hidden", "2 hidden", "conv"])
def test_gain_sweeps_by_running_the_network_at_each_gain(net, error):
    model, inputs, targets = made(net)
    chain = chain_of(model)
    units = [(chain.groups[-1].name, 3), (chain.groups[0].name, 1), (chain.groups[-1].name, 0)]
    gains = torch.tensor([0.0, 0.5, 1.0, 3.0, 10.0])
    found = gain_sweep(chain, inputs, targets, ERRORS[error], units, gains=gains, budget_bytes=50_000)
    for row, (name, unit) in enumerate(units):
        for column, gain in enumerate(gains.tolist()):
            expected = error_at(model, inputs, targets, ERRORS[error], name, unit, gain)
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-10)


def test_the_grid_of_a_gain_sweep_and_what_it_refuses():
    model, inputs, targets = made("1 hidden")
    chain = chain_of(model)
    assert gain_sweep(chain, inputs, targets, squared_error, [("0", 1)]).shape == (1, 101)
    assert gain_sweep(chain, inputs, targets, squared_error, []).shape == (0, 101)
    with pytest.raises(InputError, match="there is no 8"):
        gain_sweep(chain, inputs, targets, squared_error, [("0", 8)])
    kept = {"0": torch.tensor([False, *[True] * 7])}
    with pytest.raises(InputError, match="off already"):
        gain_sweep(chain, inputs, targets, squared_error, [("0", 0)], kept=kept)
