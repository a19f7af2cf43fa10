"""Repairs as parts of a recipe: what is refused, and what the loop makes of them."""

import copy

import pytest
import torch
from repair_nets import convnet, inputs, mlp
from torch import nn

from prunekit.errors import DataError, InputError, ModelError
from prunekit.parts.repair import Repair
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe

NAMES = ["fold_mean", "sietsma_dow", "least_squares"]


def recipe(repair, **more):
    schedule = {"name": "linear", "sparsity": 0.5, "steps": 3}
    return Recipe.parse({"granularity": "unit", "repair": repair, "schedule": schedule, **more})


def data(*shape):
    return inputs(*shape), torch.zeros(shape[0], dtype=torch.long)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("granularity", ["weight", "n:m"])
def test_single_weights_are_refused(name, granularity):
    with pytest.raises(InputError, match=f"'{name}'.*'{granularity}'.*'unit'"):
        recipe(name, granularity=granularity)


def test_names_are_known_and_settings_checked():
    assert {"none", *NAMES} <= set(Repair.members())
    assert Recipe.from_yaml(recipe("least_squares").to_yaml()) == recipe("least_squares")
    with pytest.raises(InputError, match="ridge"):
        recipe({"name": "least_squares", "ridge": -1})


@pytest.mark.parametrize("name", NAMES)
def test_no_data_is_refused(name):
    with pytest.raises(InputError, match="needs data"):
        Session(mlp(), recipe(name))


@pytest.mark.parametrize("name", ["fold_mean", "sietsma_dow"])
def test_a_reader_without_bias_is_refused_before_anything_changes(name):
    net = convnet(bias=False)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ModelError, match=f"'{name}'.*'0'.*'2'.*none"):
        prune(net, recipe(name), data(20, 2, 8, 8))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    prune(net, recipe(name, ignore=["0"]), data(20, 2, 8, 8))


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_finite_are_refused(name):
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    x, y = data(20, 7)
    x[3] = torch.nan
    with pytest.raises(DataError, match="finite"):
        prune(net, recipe(name), (x, y))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("build", [mlp, convnet])
def test_the_network_shrinks_and_stays_closer(name, build):
    shape = (7,) if build is mlp else (2, 8, 8)
    x, y = data(150, *shape)
    dense = build()
    errors = {}
    for repair in ("none", name):
        pruned = prune(copy.deepcopy(dense), recipe(repair), (x, y))
        assert {key: int(kept.sum()) for key, kept in pruned.kept.items()} == pruned.history[-1].layers
        for parameter, mask in pruned.masks.parameters(pruned.model):
            assert bool((parameter[~mask] == 0).all())
        with torch.no_grad():
            errors[repair] = float((pruned.model(x) - dense(x)).square().mean())
        pruned.shrink(x[:8])
    assert errors[name] < errors["none"]


def test_half_precision_keeps_its_type():
    net = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3)).bfloat16()
    x, y = data(50, 7)
    pruned = prune(net, recipe("least_squares"), (x.bfloat16(), y))
    assert {p.dtype for p in pruned.model.parameters()} == {torch.bfloat16}


def test_a_score_ranks_by_the_weights_before_the_repair():
    """Which units go in one step does not depend on the repair."""
    x, y = data(50, 7)
    once = {"name": "one_shot", "sparsity": 0.5}
    kept = [prune(mlp(), recipe(name, schedule=once), (x, y)).kept for name in ("none", *NAMES)]
    assert all(each == kept[0] for each in kept)
