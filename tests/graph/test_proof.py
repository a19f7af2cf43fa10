"""The proof itself: what it accepts, what it finds, and where."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph import VerificationError, proof, prune_groups, same_function
from prunekit.graph.reference_run import difference


@pytest.fixture(autouse=True)
def _doubles() -> None:
    """Here networks are in single precision: the proof's own is looked at."""


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2))


X = torch.linspace(-1, 1, 15).view(5, 3)


def test_equal_networks() -> None:
    model = net()
    deviation = same_function(model, copy.deepcopy(model), X, gradients={})
    assert deviation.accepted
    assert deviation.largest == 0


def test_another_order_of_summation_is_rounding() -> None:
    model = net()
    other = copy.deepcopy(model)
    order = torch.randperm(8)
    other[0].weight.data, other[0].bias.data = model[0].weight.data[order], model[0].bias.data[order]
    other[3].weight.data = model[3].weight.data[:, order]
    assert same_function(model, other, X).accepted


def test_networks_too_large_for_double_precision_are_compared_in_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "AFFORDABLE", 0)
    model = net()
    other = copy.deepcopy(model)
    assert same_function(model, other, X, gradients={}).accepted
    other[3].bias.data[1] += 0.25
    deviation = same_function(model, other, X)
    assert not deviation.accepted
    assert deviation.tolerance == 2 * 1000 * torch.finfo(torch.float32).eps


def test_says_where_and_how_much() -> None:
    model = net()
    other = copy.deepcopy(model)
    other[3].bias.data[1] += 0.25
    deviation = same_function(model, other, X)
    assert not deviation.accepted
    assert deviation.largest == pytest.approx(0.25)
    assert deviation.where.startswith("output 1 of example ")
    assert str(deviation).startswith(f"{deviation.where} is off by 0.25 (")


def test_a_difference_of_a_millionth_is_found() -> None:
    model = net()
    other = copy.deepcopy(model)
    other[3].bias.data[0] *= 1 + 1e-6
    assert not same_function(model, other, X).accepted
    assert same_function(model, other, X, tolerance=1e-3).accepted


def test_gradients_tell_apart_what_outputs_do_not() -> None:
    class Squared(nn.Module):
        def __init__(self, both: bool) -> None:
            super().__init__()
            self.layer, self.both = nn.Linear(3, 1, bias=False), both
            nn.init.ones_(self.layer.weight)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y * (y if self.both else y.detach())

    first, second = Squared(True), Squared(False)
    assert same_function(first, second, X).accepted
    deviation = same_function(first, second, X, gradients={})
    assert not deviation.accepted
    assert deviation.where.startswith("gradient of layer.weight at [0, ")


def test_gradients_are_compared_where_the_caller_wants_none() -> None:
    model = net()
    other = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        assert same_function(model, other, X, gradients={}).accepted


def test_networks_are_left_alone() -> None:
    model = net()
    other = copy.deepcopy(model)
    model[3].weight.grad, other[3].weight.grad = torch.ones(2, 8), torch.ones(2, 8)
    same_function(model, other, X, gradients={})
    for one in (model, other):
        assert one.training
        assert one[0].weight.grad is None
        assert torch.equal(one[3].weight.grad, torch.ones(2, 8))
        assert one[0].weight.dtype == torch.float32
        assert not one[0]._forward_hooks


def test_large_numbers_inside_make_more_rounding() -> None:
    """1e9 comes and goes: what is left of the output carries its rounding."""

    def build(order: list[int]) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1, bias=False)).double()
        model[0].weight.data = torch.tensor([[1e9], [1.1], [-1e9]], dtype=torch.float64)[order]
        model[0].bias.data = torch.tensor([0.3, 0.1, 0.7], dtype=torch.float64)[order]
        model[1].weight.data = torch.ones(1, 3, dtype=torch.float64)
        return model

    assert same_function(build([0, 1, 2]), build([0, 2, 1]), torch.rand(20, 1)).accepted


def test_not_a_number_agrees_with_itself_only() -> None:
    model = net()
    broken = copy.deepcopy(model)
    broken[3].bias.data[0] = torch.nan
    assert same_function(broken, copy.deepcopy(broken), X).accepted
    deviation = same_function(model, broken, X)
    assert not deviation.accepted
    assert deviation.relative == float("inf")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("found", [-3.0, torch.nan, torch.inf])
def test_the_largest_of_many_differences_is_found(found: float, turned: bool) -> None:
    """Numbers are compared piece by piece."""
    shape = 3, 2**9, 2**9
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected[0, 7, 8], expected[2, 1, 1] = torch.nan, torch.inf
    given = expected.clone()
    given[0, 3, 4], given[2, 500, 5], given[2, 511, 511] = 1.0, found, 2.0
    expected[0, 3, 4] = expected[2, 500, 5] = expected[2, 511, 511] = 0.0
    if turned:
        given = given.mT.contiguous().mT
    deviation = difference(expected, given, 10.0, 1e-9, str)
    assert deviation.where == "[2, 500, 5]"
    assert deviation.largest == 3.0 if found == -3 else deviation.largest > 1e300
    assert deviation.relative == deviation.largest / 10
    assert difference(given, given.clone(), 10.0, 1e-9, str).largest == 0


def test_silent_network_must_stay_silent() -> None:
    silent = nn.Linear(3, 2)
    nn.init.zeros_(silent.weight)
    nn.init.zeros_(silent.bias)
    other = copy.deepcopy(silent)
    assert same_function(silent, other, X).accepted
    other.bias.data[0] = 1e-20
    assert not same_function(silent, other, X).accepted


def test_outputs_of_another_shape() -> None:
    with pytest.raises(VerificationError, match=r"shape \(5, 3\) in place of \(5, 2\)"):
        same_function(nn.Linear(3, 2), nn.Linear(3, 3), X)


def test_networks_that_cannot_be_run() -> None:
    with pytest.raises(ModelError, match="the reference network failed on the inputs: RuntimeError"):
        same_function(nn.Linear(4, 2), nn.Linear(3, 2), X)
    with pytest.raises(VerificationError, match="the candidate network failed on the inputs"):
        same_function(nn.Linear(3, 2), nn.Linear(4, 2), X)
    with pytest.raises(ModelError, match="the reference network gives Tensor in place of a tensor of real"):
        same_function(Choice(), nn.Linear(3, 2), X)


class Choice(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_every_output_is_compared() -> None:
    model = nn.GRU(3, 2)
    other = copy.deepcopy(model)
    assert same_function(model, other, X, gradients={}).largest == 0
    other.weight_hh_l0.data[0] += 0.5
    deviation = same_function(model, other, X)
    assert not deviation.accepted
    assert deviation.where.startswith("number [")
    with pytest.raises(VerificationError, match=r"shapes \[\(5, 3\), \(1, 3\)\] in place of \[\(5, 2\)"):
        same_function(model, nn.GRU(3, 3), X)


def test_complex_numbers_are_computed_in_double_precision():
    class Rotates(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x):
            angles = torch.arange(len(x), dtype=torch.float32)[:, None]
            turns = torch.polar(torch.ones_like(angles), angles).to(x.device)
            out = torch.view_as_complex(self.b(self.norm(self.a(x))).float().unflatten(-1, (-1, 2)))
            return torch.view_as_real(out * turns).flatten(-2)

    result = prune_groups(Rotates(), torch.randn(4, 6), 0.5)
    assert (result.form, result.deviation.accepted) == ("modules", True)
