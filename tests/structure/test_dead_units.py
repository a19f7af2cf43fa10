"""Units that do nothing any more are found and taken out, exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from chain_nets import ChainPlan, build, chain_plans
from examples import number_of_examples
from prunekit.errors import InputError
from prunekit.graph import INPUT, Deviation, VerificationError, chain_of, proof
from prunekit.masks import Masks
from prunekit.models import lenet_300_100
from prunekit.structure import dead_units, shrink_dead


def removed(model: nn.Module, **named: bool) -> dict[str, list[int]]:
    found = dead_units(model, chain_of(model, **named))
    return {name: (~kept).nonzero().flatten().tolist() for name, kept in found.kept.items()}


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def test_nothing_is_dead_in_a_dense_network() -> None:
    model = perceptron()
    found = dead_units(model, chain_of(model, inputs=True))
    assert found.kept == {}
    assert found.biases == {}


def test_unread_units_and_what_only_they_read() -> None:
    model = perceptron()
    with torch.no_grad():
        model[4].weight[:, [1, 2]] = 0
        model[2].weight[[0, 3, 4, 5], 0] = 0  # unit 0 of the first layer goes to the dead 1 and 2 alone
        model[0].weight[1:, 3] = 0  # and so does input 3, through it
    assert removed(model, inputs=True) == {INPUT: [3], "0": [0], "2": [1, 2]}


def test_constant_units_are_folded_into_the_next_bias() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
    found = dead_units(model, chain_of(model))
    weight, bias = model[2].weight.detach(), model[2].bias.detach()
    constants = torch.sigmoid(model[0].bias.detach()[[1, 4]])
    torch.testing.assert_close(found.biases["2.bias"], bias + weight[:, [1, 4]] @ constants)
    x = torch.randn(7, 4).double()
    expected = model(x).detach()
    result = shrink_dead(model, x)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-12, atol=1e-13)
    assert model[0].out_features == 3
    assert "largest relative difference" in str(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_biases_are_rounded_to_their_own_precision(dtype: torch.dtype) -> None:
    model = perceptron().to(dtype)
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
    reference = copy.deepcopy(model).double()
    x = torch.randn(7, 4)
    result = shrink_dead(model, x)
    assert 0 < result.deviation.relative < 3 * torch.finfo(dtype).eps
    bound = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(model.double()(x.double()), reference(x.double()), rtol=bound, atol=bound)


def test_constants_go_through_several_layers() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[2].weight[3] = 0
        model[2].weight[3, 2] = 1  # unit 3 reads nothing but the constant unit 2
    x = torch.randn(7, 4).double()
    expected = model(x).detach()
    assert removed(model) == {"0": [2], "2": [3]}
    shrink_dead(model, x)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-12, atol=1e-13)


def test_layer_without_a_bias_takes_no_constant_but_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias.copy_(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    assert removed(model) == {"0": [1]}


@pytest.mark.parametrize(
    ("options", "pool", "dead"),
    [
        ({}, nn.MaxPool2d(2), True),
        ({}, nn.AvgPool2d(2), True),
        ({}, nn.AvgPool2d(2, padding=1), False),
        ({}, nn.AvgPool2d(2, padding=1, count_include_pad=False), True),
        ({"padding": 1}, nn.Identity(), False),
        ({"padding": "same"}, nn.Identity(), False),
        ({"padding": "valid"}, nn.Identity(), True),
        ({"padding": 1, "padding_mode": "reflect"}, nn.Identity(), True),
        ({"bias": False}, nn.Identity(), False),
    ],
)
def test_convolutions(options: dict[str, object], pool: nn.Module, dead: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), pool, nn.Conv2d(3, 2, 3, **options),  # type: ignore[arg-type]
        nn.Flatten(), nn.LazyLinear(2),
    )  # fmt: skip
    x = torch.randn(4, 1, 10, 10)
    model(x)
    model.double().eval()
    model[0].weight.data[1] = 0
    assert removed(model) == ({"0": [1]} if dead else {})
    expected = model(x.double()).detach()
    shrink_dead(model, x)
    torch.testing.assert_close(model(x.double()).detach(), expected, rtol=1e-12, atol=1e-13)


def test_zero_constant_passes_zero_padding() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = -1
    assert removed(model) == {"0": [1]}


def test_flattened_constants_have_a_value_for_each_position() -> None:
    model = nn.Sequential(nn.Conv1d(1, 3, 3), nn.Flatten(), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 2))
    model(torch.randn(9, 1, 6))
    with torch.no_grad():
        model[2].weight.normal_()
        model[2].bias.normal_()
        model[0].weight[2] = 0
    model.double().eval()
    x = torch.randn(5, 1, 6).double()
    expected = model(x).detach()
    shrink_dead(model, x)
    assert model[0].out_channels == 2
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-12, atol=1e-13)


def test_every_layer_keeps_a_unit() -> None:
    model = perceptron()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[4].bias.fill_(2.0)
    result = shrink_dead(model, torch.randn(3, 4).double())
    assert [group.after for group in result.groups] == [1, 1]
    assert model(torch.randn(3, 4).double()).tolist() == [[2.0, 2.0]] * 3


def test_masks_count_before_they_are_applied() -> None:
    model = perceptron()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 4] = False
    found = dead_units(model, chain_of(model), Masks({"4.weight": mask}))
    assert (~found.kept["2"]).nonzero().tolist() == [[4]]
    assert model[4].weight.all()
    with pytest.raises(InputError, match="belong to another model"):
        dead_units(model, chain_of(model), Masks({"4.weight": mask.T}))


def test_masked_bias_takes_no_constant() -> None:
    model = perceptron()
    model[0].weight.data[0] = 0
    masks = Masks({"2.bias": torch.zeros(6, dtype=torch.bool)})
    assert dead_units(model, chain_of(model), masks).kept == {}


def test_very_sparse_network_shrinks_by_far() -> None:
    model = lenet_300_100((1, 28, 28), 10)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            least = parameter.detach().abs().flatten().kthvalue(int(0.99 * parameter.numel())).values
            masks[name] = parameter.detach().abs() > least
        else:
            parameter.data.normal_()
    x = torch.rand(5, 1, 28, 28)
    expected = copy.deepcopy(model)
    Masks(masks).apply(expected)
    result = shrink_dead(model, x, masks=Masks(masks))
    assert result.parameters_after < 0.3 * result.parameters_before
    torch.testing.assert_close(model(x), expected(x))
    assert result.masks.kept > 0
    for name, mask in result.masks.items():
        assert not model.get_parameter(name)[~mask].any()


@given(plan=chain_plans())
@number_of_examples(40)
def test_sparse_random_chains(plan: ChainPlan) -> None:
    built = build(plan, torch.float64)
    torch.manual_seed(plan.seed)
    for name, parameter in built.model.named_parameters():
        if name.endswith("weight") and not name.startswith("op"):
            parameter.data *= torch.rand_like(parameter) < 0.15
    with torch.no_grad():
        expected: Tensor = built.model(built.inputs)
        shrink_dead(built.model, built.inputs)
        found = built.model(built.inputs)
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-11 * scale


def test_biases_are_put_back_where_the_proof_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron()
    model[0].weight.data[0] = 0
    before = {name: (value, value.clone()) for name, value in model.named_parameters()}
    monkeypatch.setattr(proof, "_deviation", lambda *_, **__: Deviation(1, 1, 0, "output 0"))
    with pytest.raises(VerificationError):
        shrink_dead(model, torch.randn(3, 4).double())
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
