"""Weights on a grid by second order as a part of a recipe."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunekit import Recipe, prune
from prunekit.errors import InputError, ModelError
from prunekit.parts.quantize import SymbolCosts
from small_nets import blobs, mlp, same

DATA = blobs(80, dtype=torch.float64)


def net(seed: int = 0) -> nn.Sequential:
    return mlp(10, 12, 8, 3, seed=seed, dtype=torch.float64)


def recipe(sparsity: float | None = 0.5, **quantize: object) -> Recipe:
    pruned = {"schedule": {"name": "one_shot", "sparsity": sparsity}}
    return Recipe.parse(
        {
            **({"schedule": "allocation_decides", "allocation": "none"} if sparsity is None else pruned),
            "quantize": {"name": "second_order", "half_biases": False, **quantize},
        }
    )


def pruned_net() -> nn.Sequential:
    model = net()
    prune(model, Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}}))
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.dim() > 1}


def inputs_of(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return seen[0]


def error_of(old: nn.Sequential, new: nn.Sequential, place: int) -> float:
    """The layer's own squared error, on what it was given before, relative to the variance of its outputs."""
    x = inputs_of(old, old[place], DATA[0])
    with torch.no_grad():
        wanted, found = old[place](x), new[place](x)
    centred = wanted - wanted.mean(0)
    return float((wanted - found).square().sum() / centred.square().sum())


def rounded(model: nn.Sequential, step: float) -> nn.Sequential:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                unit = step * weight[weight != 0].square().mean().sqrt()
                weight.copy_((weight / unit).round() * unit)
    return model


def test_weights_are_on_the_grid_zeros_stay_and_layers_err_less_than_by_rounding():
    before, plain, model = pruned_net(), rounded(pruned_net(), 0.8), net()
    result = prune(model, recipe(rate=0.0, step=0.8, damp=1e-6), DATA)
    for name, weight in weights(model).items():
        old = before.get_parameter(name).detach()
        unit = 0.8 * float(old[old != 0].square().mean().sqrt())
        np.testing.assert_allclose((weight / unit).round().numpy() * unit, weight.numpy(), atol=1e-12)
        assert not (weight != 0)[old == 0].any()
        assert result.history[-1].levels[name] == len(set(weight.flatten().tolist()) - {0.0})
    for place in (0, 2, 4):
        assert error_of(before, model, place) < error_of(before, plain, place)


def test_of_several_steps_and_passes_each_layer_takes_what_comes_to_the_least():
    rate, before = 0.05, pruned_net()
    total = sum(weight.numel() for weight in weights(before).values())

    def losses(model: nn.Sequential, step: float) -> dict[int, float]:
        """E / E_0 + rate bits / weights by the layer's own outputs and levels."""
        losses = {}
        for place in (0, 2, 4):
            levels = (model[place].weight.detach() / (step * scale[place])).round()
            bits = SymbolCosts.of(levels, torch.float64, magnitudes="counted").bits(levels).sum()
            losses[place] = error_of(before, model, place) + rate * float(bits) / total
        return losses

    def made(step: object) -> nn.Sequential:
        model = net()
        prune(model, recipe(rate=rate, step=step, damp=0.0, passes=3), DATA)
        return model

    steps = (0.3, 0.6, 1.2)
    scale = {
        place: float(before[place].weight.detach()[before[place].weight != 0].square().mean().sqrt())
        for place in (0, 2, 4)
    }
    single = {step: made(step) for step in steps}
    best = made(list(steps))
    alone = {step: losses(model, step) for step, model in single.items()}
    for place in scale:
        least = min(steps, key=lambda step: alone[step][place])
        assert torch.equal(best[place].weight, single[least][place].weight)


def test_the_rate_prunes_and_zeros_may_come_back_if_they_are_allowed():
    bits = []
    for rate in (0.0, 0.3, 30.0):
        model = net()
        bits.append(prune(model, recipe(None, rate=rate), DATA).history[-1].bits)
    assert bits[0] > bits[1] > bits[2] == 0
    before = pruned_net()
    free, held = net(), net()
    prune(free, recipe(rate=0.0, step=0.1, keep_zeros=False), DATA)
    prune(held, recipe(rate=0.0, step=0.1), DATA)
    gone = {name: weight == 0 for name, weight in weights(before).items()}
    # the masks of the recipe hold in any case, and zeros that they keep if that is asked for
    for name, weight in weights(held).items():
        assert not (weight != 0)[gone[name]].any()
    for name, weight in weights(free).items():
        assert not (weight != 0)[gone[name]].any()
    free, held = pruned_net(), pruned_net()
    prune(free, recipe(None, rate=0.0, step=1.5, keep_zeros=False), DATA)
    prune(held, recipe(None, rate=0.0, step=1.5), DATA)
    assert not any((weight != 0)[gone[name]].any() for name, weight in weights(held).items())
    assert any((weight != 0)[gone[name]].any() for name, weight in weights(free).items())


def test_values_are_trained_as_shared_ones_and_a_seed_gives_the_same():
    training = {"optimizer": "sgd", "lr": 0.05, "batch_size": 40, "iterations": 4}
    plain, first, second = net(), net(), net()
    prune(plain, recipe(), DATA)
    prune(first, recipe(training=training, half_biases=True), DATA)
    prune(second, recipe(training=training, half_biases=True), DATA)
    assert same(first.state_dict(), second.state_dict())
    for name, weight in weights(first).items():
        old = plain.get_parameter(name).detach()
        assert all(len(weight[old == value].unique()) == 1 for value in old.unique())
        assert torch.equal(weight, weight.half().double())


def test_convolutions_with_groups_and_without_a_bias():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    before = weights(model)
    data = torch.randn(60, 4, 6, 6), torch.arange(60) % 3
    prune(model, recipe(None, rate=0.0, step=0.02), data)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, before[name], atol=0.02, rtol=0.2)


def test_what_cannot_be_judged_by_inputs_or_has_no_data_is_refused():
    with pytest.raises(InputError, match="the recipe's quantize 'second_order' needs data"):
        prune(net(), recipe())
    model = nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(50, 3))
    data = torch.randn(20, 1, 3, 3), torch.arange(20) % 3
    with pytest.raises(ModelError, match="ConvTranspose2d"):
        prune(model, recipe(), data)
    prune(model, recipe(ignore=["0"]), data)
    for wrong, message in (
        ({"step": []}, "step: at least one number is needed"),
        ({"step": [1.0, 0]}, "step: a number from 0.01 to 100 is needed, not 0"),
        ({"rate": -1}, "rate"),
        ({"passes": 0}, "passes"),
        ({"damp": -1}, "damp"),
    ):
        with pytest.raises(InputError, match=message):
            recipe(**wrong)
