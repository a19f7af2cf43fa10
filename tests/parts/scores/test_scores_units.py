"""Scores of units, against numpy and loops over units that are switched off."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunekit.losses import squared_error
from prunekit.masks import Masks
from prunekit.parts.context import StepContext
from prunekit.parts.granularity import Unit
from prunekit.parts.scores import (
    Activation,
    Oracle,
    OutgoingNorm,
    Random,
    Skeletonization,
    UnitTaylor,
)
from prunekit.pruning import prune
from prunekit.seeds import generator
from prunekit.statistics import StatContext, collect
from prunekit.task import Task
from unit_recipes import conv_net, data, net, outputs, units

BATCH = 10


def scores_of(score, model, examples, off=()):
    """What the score gives on these examples, in batches of 10, with some units off."""
    elements = Unit().elements(model, example_inputs=examples[0][:2])
    kept = dict(elements.all_kept())
    for name, unit in off:
        kept[name][unit] = False
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in kept}
    batches = zip(*(each.split(BATCH) for each in examples), strict=True)
    found = collect(
        StatContext(model, list(weights), kept=kept, coupled=elements.coupled),
        batches,
        score.needs,
        task=Task(squared_error),
    )
    with torch.no_grad():
        return score(StepContext(weights, found, coupled=elements.coupled, kept=Masks(kept)))


def one_hot(targets):
    return np.eye(4)[targets.numpy()]


def gained(model: nn.Sequential, inputs: Tensor, gains: dict[str, Tensor]) -> Tensor:
    """The network with every unit's output multiplied by a gain."""
    x, producer = inputs, ""
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.Linear | nn.Conv2d):
            producer = name
        elif isinstance(module, nn.ReLU | nn.Sigmoid) and producer in gains:
            x = x * gains[producer].view(1, -1, *[1] * (x.dim() - 2))
    return x


def hidden(model, inputs, layer):
    """What a layer's units say behind the activation: (examples, units, ...)."""
    with torch.no_grad():
        return model[: int(layer) + 2](inputs).numpy()


NETS = [(net(6, 7, 5, 4), (6,), {"0": 7, "2": 5}), (conv_net(), (1, 8, 8), {"0": 4, "3": 5, "6": 6})]
OFF = [(), (("0", 2),)]


@pytest.mark.parametrize(("model", "shape", "sizes"), NETS)
@pytest.mark.parametrize("off", OFF)
def test_oracle(model, shape, sizes, off):
    inputs, targets = data(*shape)
    found = scores_of(Oracle(), model, (inputs, targets), off)
    before = squared_error(outputs(model, inputs, off), targets)
    for name, size in sizes.items():
        for unit in range(size):
            after = squared_error(outputs(model, inputs, [*off, (name, unit)]), targets)
            assert float(found[name][unit]) == pytest.approx(float(after - before), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("model", "shape", "sizes"), NETS)
@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("order", [1, 2])
def test_taylor(model, shape, sizes, off, order):
    inputs, targets = data(*shape)
    found = scores_of(UnitTaylor(order=order), model, (inputs, targets), off)
    gains = {name: torch.ones(size, dtype=torch.float64) for name, size in sizes.items()}
    for name, unit in off:
        gains[name][unit] = 0.0
    for name, size in sizes.items():

        def error(own, name=name):
            return squared_error(gained(model, inputs, {**gains, name: own}), targets)

        first = torch.autograd.functional.jacobian(error, gains[name])
        second = torch.autograd.functional.hessian(error, gains[name]).diagonal()
        for unit in range(size):
            if (name, unit) not in off:
                expected = -float(first[unit]) + (float(second[unit]) / 2 if order == 2 else 0)
                assert float(found[name][unit]) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_the_published_form_is_exact_in_the_last_hidden_layer_only():
    model, examples = net(6, 7, 5, 4), data(6)
    exact, published = (scores_of(UnitTaylor(form=form), model, examples) for form in ("exact", "published"))
    assert torch.allclose(exact["2"], published["2"], rtol=1e-10)
    assert not torch.allclose(exact["0"], published["0"], rtol=1e-3)


@pytest.mark.parametrize("logits", [False, True])
def test_skeletonization_is_a_running_average_over_batches(logits):
    """Of the error of probabilities: the softmax of logits, or outputs between 0 and 1 as they are."""
    model, (inputs, targets) = net(6, 7, 5, 4), data(6)
    model = model[:-1] if logits else model
    running = None
    for x, t in zip(inputs.split(4), targets.split(4), strict=True):
        gains = {n: torch.ones(s, dtype=torch.float64, requires_grad=True) for n, s in (("0", 7), ("2", 5))}
        wanted = torch.from_numpy(one_hot(t))
        said = gained(model, x, gains)
        if logits:
            said = said.exp() / said.exp().sum(1, keepdim=True)
        (said - wanted).abs().sum(1).mean().backward()
        now = {name: -gain.grad for name, gain in gains.items()}
        running = now if running is None else {n: 0.8 * running[n] + 0.2 * now[n] for n in now}
    found = scores_of(Skeletonization(batch_size=4), model, (inputs, targets))
    for name, expected in running.items():
        assert torch.allclose(found[name], expected, rtol=1e-9)


@pytest.mark.parametrize("layer", ["0", "3", "6"])
def test_apoz_counts_zeros_behind_the_activation(layer):
    model, examples = conv_net(), data(1, 8, 8)
    found = scores_of(Activation(), model, examples)[layer].numpy()
    said = np.moveaxis(hidden(model, examples[0], layer), 1, 0).reshape(len(found), -1)
    assert np.allclose(found, (said != 0).mean(1), rtol=1e-12)
    assert 0 < found.mean() < 1


def test_behaviour_of_neurons():
    model, examples = net(6, 7, 5, 4), data(6)
    for layer in ("0", "2"):
        said = hidden(model, examples[0], layer)
        mean, variance, rest = (
            scores_of(Activation(what=what), model, examples)[layer].numpy()
            for what in ("mean", "variance", "irreplaceable")
        )
        assert np.allclose(mean, said.mean(0), rtol=1e-10)
        assert np.allclose(variance, said.var(0), rtol=1e-8)
        correlation = np.corrcoef(said.T) ** 2
        np.fill_diagonal(correlation, 0)
        assert np.allclose(rest, 1 - correlation.max(1), rtol=1e-7)


def test_a_neuron_with_a_twin_can_be_replaced():
    model, examples = net(6, 7, 5, 4), data(6)
    with torch.no_grad():
        model[0].weight[4], model[0].bias[4] = model[0].weight[1], model[0].bias[1]
    pruned = prune(model, units({"name": "activation", "what": "irreplaceable"}, sparsity=1 / 12), examples)
    assert (~pruned.kept["0"]).nonzero().flatten().tolist() in ([1], [4])


POOLS = {
    "sum": lambda rows: np.abs(rows).sum(1),
    "mean": lambda rows: np.abs(rows).mean(1),
    "l2": lambda rows: np.sqrt((rows**2).sum(1)),
    "max": lambda rows: np.abs(rows).max(1),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("model", "shape", "sizes"), NETS)
def test_magnitude_is_a_norm_of_the_filter(pool, model, shape, sizes):
    before = {name: model.get_parameter(f"{name}.weight").detach().numpy().copy() for name in sizes}
    norms = np.concatenate([POOLS[pool](w.reshape(len(w), -1)) for w in before.values()])
    count = len(norms) // 3
    whole = {"name": "global", "floor": 0}
    granularity = {"name": "unit", "pool": pool}
    recipe = units("magnitude", sparsity=count / len(norms), granularity=granularity, allocation=whole)
    kept = np.concatenate([flags.numpy() for flags in prune(copy.deepcopy(model), recipe).kept.values()])
    assert sorted(np.argsort(norms)[:count]) == np.flatnonzero(~kept).tolist()


@pytest.mark.parametrize("order", [1, 2])
def test_outgoing_norms(order):
    found = scores_of(OutgoingNorm(order=order), net(6, 7, 5, 4), data(6))
    for name, reader in (("0", 2), ("2", 4)):
        columns = net(6, 7, 5, 4)[reader].weight.detach().numpy()
        assert np.allclose(found[name].numpy(), np.linalg.norm(columns, ord=order, axis=0))
    kernels = conv_net()[3].weight.detach().numpy()
    expected = [np.linalg.norm(kernels[:, c].ravel(), ord=order) for c in range(4)]
    assert np.allclose(scores_of(OutgoingNorm(order=order), conv_net(), data(1, 8, 8))["0"], expected)
    blocks = conv_net()[6].weight.detach().numpy().reshape(6, 5, 9)
    expected = [np.linalg.norm(blocks[:, c].ravel(), ord=order) for c in range(5)]
    assert np.allclose(scores_of(OutgoingNorm(order=order), conv_net(), data(1, 8, 8))["3"], expected)


def test_random_is_uniform_over_units():
    """Every unit of both layers is the first to go equally often: chi-square of 12 units, 6000 draws."""
    coupled = Unit().elements(net(6, 7, 5, 4)).coupled
    kept = {"0": torch.ones(7, dtype=torch.bool), "2": torch.ones(5, dtype=torch.bool)}
    first = np.zeros(12)
    for seed in range(6000):
        drawn = Random()(StepContext({}, generator=generator(seed), coupled=coupled, kept=Masks(kept)))
        first[int(torch.cat([drawn["0"], drawn["2"]]).argmin())] += 1
    assert ((first - 500) ** 2 / 500).sum() < 31.3  # the 99.9 % point for 11 degrees of freedom
