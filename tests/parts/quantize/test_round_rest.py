"""What is rounded beside the weights, and what goes when weights have become zero."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunekit import Recipe, prune
from prunekit.errors import InputError
from prunekit.packing.tensor_codes import Form, coded
from prunekit.parts.quantize.base import rounded_to_grid


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    st.integers(2, 8),
)
def test_the_grid_has_so_many_values_and_the_nearest_is_taken(numbers: list[float], bits: int) -> None:
    values = torch.tensor(numbers)
    found = rounded_to_grid(values, bits)
    most = 2 ** (bits - 1) - 1
    step = float(np.float32(np.abs(values.numpy()).max()) / np.float32(most))
    if step == 0:
        assert not found.any()
        return
    if step >= np.finfo(np.float16).tiny:
        step = float(np.float16(step))
    grid = np.arange(-most, most + 1) * step
    nearest = np.abs(values.double().numpy()[:, None] - grid).min(1)
    error = np.abs(values.double().numpy() - found.double().numpy())
    assert (np.abs(found.double().numpy()[:, None] - grid).min(1) <= 1e-6 * most * step).all()
    np.testing.assert_allclose(error, nearest, atol=1e-5 * most * step)


@pytest.mark.parametrize("scale", [2.0**-70, 2.0**-20, 2.0**30, 2.0**70])
@pytest.mark.parametrize("bias_bits", [None, 4])
def test_a_network_of_another_scale_has_the_same_levels(scale: float, bias_bits: int | None) -> None:
    """By a power of two all stays what it is, and what half precision does not reach is not rounded to it."""

    def quantized(by: float) -> nn.Module:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
        with torch.no_grad():
            for each in model.parameters():
                each.copy_(each.half().float() * by)
        quantize = {"name": "kmeans", "bits": 3, "start": "optimal", "bias_bits": bias_bits}
        prune(model, Recipe(schedule={"name": "one_shot", "sparsity": 0.5}, quantize=quantize))
        return model

    for found, right in zip(quantized(scale).parameters(), quantized(1.0).parameters(), strict=True):
        assert torch.equal(found != 0, right != 0)
        torch.testing.assert_close(found / scale, right, rtol=2**-10, atol=0)


@pytest.mark.parametrize("variance", [1e-9, 1e-4, 1.0, 3e4, 3e6, 1e12])
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_a_batch_norm_divides_by_what_it_did(variance: float, eps: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, eps=eps), nn.Linear(5, 3)).eval()
    model[1].running_var.uniform_(1, 2).mul_(variance)
    model[1].running_var[0] = 1.0
    before = copy.deepcopy(model[1])
    quantize = {"name": "kmeans", "bits": 3}
    prune(model, Recipe(schedule={"name": "one_shot", "sparsity": 0.5}, quantize=quantize))
    inputs = torch.randn(20, 5) * (variance + eps) ** 0.5
    torch.testing.assert_close(model[1](inputs), before(inputs), rtol=2**-10, atol=1e-6)


def test_a_variance_that_half_precision_holds_is_rounded() -> None:
    model = network().eval()
    model[3].running_var.uniform_(0.5, 2)
    before = model[3].running_var.clone()
    prune(model, Recipe(schedule={"name": "one_shot", "sparsity": 0.5}, quantize={"name": "kmeans"}))
    assert torch.equal(model[3].running_var, before.half().float())


def test_biases_take_few_values_and_norms_stay_halves() -> None:
    model = network()
    quantize = {"name": "kmeans", "bits": 3, "bias_bits": 3}
    prune(model, Recipe(schedule={"name": "one_shot", "sparsity": 0.5}, quantize=quantize))
    for layer in (model[0], model[2], model[4]):
        assert len(layer.bias.unique()) <= 7
        step = layer.bias.abs().max() / 3
        levels = layer.bias / step
        torch.testing.assert_close(levels, levels.round(), atol=1e-5, rtol=0)
    assert torch.equal(model[3].weight, model[3].weight.half().float())


@pytest.mark.parametrize("bits", [1, 13])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match="bias_bits"):
        Recipe(schedule={"name": "one_shot", "sparsity": 0.5}, quantize={"name": "kmeans", "bias_bits": bits})


def test_weights_that_became_zero_and_dead_units_are_removed_from_the_masks_too() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(1)
    with torch.no_grad():
        model[0].weight[2] *= 1e-4  # goes, and the unit's bias is a constant
        model[0].bias[2] = 1.0
    before = copy.deepcopy(model)
    inputs = torch.randn(20, 6)
    recipe = Recipe(
        schedule={"name": "one_shot", "sparsity": 6 / 72},
        allocation={"name": "global", "floor": 0},
        quantize={"name": "kmeans", "bits": 8, "half_biases": False, "zero_dead": True},
    )
    pruned = prune(model, recipe, (inputs, torch.randint(0, 3, (20,))))
    for name, mask in pruned.masks.items():
        assert torch.equal(mask, model.get_parameter(name) != 0)
    assert not model[2].weight[:, 2].any()
    assert not model[0].bias[2].any()
    torch.testing.assert_close(model[2].bias, before[2].bias + before[2].weight[:, 2], atol=1e-6, rtol=0)
    assert pruned.history[-1].kept == pruned.masks.kept


def test_no_zero_has_a_sign_and_a_grid_is_one_to_the_bit() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    training = {"iterations": 3, "batch_size": 20, "optimizer": "sgd", "lr": 0.01}
    quantize = {"name": "entropy", "step": 1.0, "training": training, "bias_bits": 4}
    recipe = Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.3}, "quantize": quantize})
    prune(model, recipe, (torch.randn(20, 6), torch.randint(0, 3, (20,))))
    for value in model.parameters():
        assert not torch.signbit(value[value == 0]).any()
    for layer in (model[0], model[2]):
        for value in (layer.weight, layer.bias):
            assert coded(value.detach(), lambda levels: 0).form is Form.GRID
