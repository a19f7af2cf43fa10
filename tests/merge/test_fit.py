"""Least squares of a convolution, against numpy on patches by torch's unfold, and scipy."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from prunekit.errors import InputError
from prunekit.merge.fit import fit_convolution, relative_error


def problem(seed=0, outputs=4, **settings):
    torch.manual_seed(seed)
    layer = nn.Conv2d(3, outputs, **{"kernel_size": 3, **settings}).double()
    x = torch.randn(6, 3, 9, 8, dtype=torch.float64) + 0.5
    y = torch.randn_like(layer(x)).detach() + 2
    return layer, x, y


def unfolded(layer, x):
    """(rows, columns + 1): patches by torch.nn.functional.unfold, ones behind them."""
    found = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    found = found.transpose(1, 2).flatten(0, 1).numpy()
    return np.hstack([found, np.ones((len(found), 1))])


def by_numpy(layer, x, y):
    targets = y.flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    found = np.linalg.lstsq(unfolded(layer, x), targets, rcond=None)[0]
    return found[:-1].T, found[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1)},
        {"dilation": 2, "padding": 2},
        {"kernel_size": 1},
    ],
)
def test_the_closed_form_is_least_squares(settings):
    layer, x, y = problem(**settings)
    fit_convolution(layer, x, y, damp=0)
    weight, bias = by_numpy(layer, x, y)
    np.testing.assert_allclose(layer.weight.detach().flatten(1).numpy(), weight, atol=1e-9)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, atol=1e-9)


def test_memory_in_parts_gives_the_same(monkeypatch):
    layer, x, y = problem(padding=1)
    fit_convolution(layer, x, y, damp=0)
    whole = layer.weight.detach().clone()
    monkeypatch.setattr("prunekit.merge.fit._PATCH_BYTES", 1)
    fit_convolution(layer, x, y, damp=0)
    torch.testing.assert_close(layer.weight.detach(), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mean", [0.0, 500.0, -1e4])
def test_what_a_layer_gives_is_fitted_in_single_precision_wherever_its_inputs_lie(mean):
    layer, x, _ = problem()
    x = x + mean
    with torch.no_grad():
        y = layer(x)
    fitted = nn.Conv2d(3, 4, 3)
    fit_convolution(fitted, x.float(), y.float())
    found = fitted(x.float()).double()
    assert relative_error(found.detach(), y) < 1e-3


def test_some_rows_are_fitted_and_others_stay():
    layer, x, y = problem()
    before = layer.weight.detach().clone()
    fit_convolution(layer, x, y[:, [1, 3]], rows=torch.tensor([1, 3]), damp=0)
    weight, _ = by_numpy(layer, x, y[:, [1, 3]])
    np.testing.assert_allclose(layer.weight.detach()[[1, 3]].flatten(1).numpy(), weight, atol=1e-9)
    assert torch.equal(layer.weight.detach()[[0, 2]], before[[0, 2]])


def test_channels_that_are_always_zero_get_no_weights():
    layer, x, y = problem()
    x[:, 1] = 0
    fit_convolution(layer, x, y)
    assert not layer.weight.detach()[:, 1].any()
    weight, _ = by_numpy(layer, x, y)
    np.testing.assert_allclose(layer.weight.detach().flatten(1).numpy(), weight, atol=1e-3)


def test_behind_a_relu_the_convex_loss_is_minimised():
    """max(0, .) of a layer's outputs: its own weights are found again, which plain least squares misses."""
    layer, x, _ = problem(outputs=2, kernel_size=2)
    wanted = layer(x).detach().relu()
    weight = layer.weight.detach().clone()
    fit_convolution(layer, x, wanted, damp=0)
    plain = float((layer.weight.detach() - weight).abs().max())
    fit_convolution(layer, x, wanted, damp=0, rectified=True, rounds=400)
    assert plain > 0.05
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=1e-4)


def test_the_minimum_of_the_convex_loss_is_scipys():
    layer, x, y = problem(outputs=1, kernel_size=2)
    y = (y - 2).relu()
    rows, target = unfolded(layer, x), y.flatten().numpy()

    def loss(found):
        given = rows @ found
        missed = np.where(target > 0, target - given, np.maximum(given, 0))
        slope = np.where(target > 0, -missed, missed)
        return missed @ missed, 2 * rows.T @ slope

    best = minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", options={"ftol": 1e-15})
    fit_convolution(layer, x, y, damp=0, rectified=True, rounds=300)
    found = np.append(layer.weight.detach().flatten().numpy(), layer.bias.detach().numpy())
    assert loss(found)[0] == pytest.approx(best.fun, rel=1e-6)


def test_no_round_makes_the_convex_loss_larger():
    layer, x, noise = problem(outputs=3)
    y = (3 * layer(x).detach() + 0.1 * noise).relu()
    losses = []
    for rounds in range(6):
        fit_convolution(layer, x, y, damp=0, rectified=True, rounds=rounds)
        given = layer(x).detach()
        losses.append(float(torch.where(y > 0, y - given, given.clamp(min=0)).square().sum()))
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.98 * losses[0]


def test_what_cannot_be_fitted_is_refused():
    layer, x, y = problem()
    with pytest.raises(InputError, match=r"outputs of the shape \(6, 4, 7, 6\), not \(6, 3, 7, 6\)"):
        fit_convolution(layer, x, y[:, :3])
    with pytest.raises(InputError, match="without groups and with a bias"):
        fit_convolution(nn.Conv2d(3, 4, 3, bias=False), x, y)


def test_the_relative_error_is_the_share_of_the_variance_that_is_missed():
    wanted = torch.randn(5, 2, 3, 3) + torch.tensor([10.0, -3.0]).view(1, 2, 1, 1)
    mean = wanted.mean((0, 2, 3), keepdim=True).expand_as(wanted)
    assert relative_error(wanted, wanted) == 0
    assert relative_error(mean, wanted) == pytest.approx(1, rel=1e-5)
    halfway = (wanted + mean) / 2
    assert relative_error(halfway, wanted) == pytest.approx(0.25, rel=1e-5)
    assert relative_error(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)) == 0
    assert relative_error(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)) == 1
