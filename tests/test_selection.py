"""Selections in a recipe: exact counts, patterns, and the published algorithm as selection and repair."""

import copy

import pytest
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.methods import alps, sparsegpt
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from prunekit.second_order import choose_count, damped, left_to_right
from small_nets import blobs, convnet, mlp


def recipe(**settings):
    return Recipe.parse(
        {"allocation": "per_layer", "schedule": {"name": "one_shot", "sparsity": 0.5}, **settings}
    )


def test_selection_and_repair_are_the_published_algorithm():
    model = mlp(10, 8, 3, dtype=torch.float64)
    before = copy.deepcopy(model)
    inputs, targets = blobs(64, 10, 3, dtype=torch.float64)
    prune(model, sparsegpt(sparsity=0.5), (inputs, targets))
    with torch.no_grad():
        x = inputs
        for place in (0, 2):
            weight, bias, mean = before[place].weight, before[place].bias, x.mean(0)
            matrix, _ = damped((x - mean).T @ (x - mean) / len(x), 0.01)
            nothing = torch.zeros_like(weight, dtype=torch.bool)
            wanted, mask = left_to_right(matrix, weight, choose_count(nothing, weight.numel() // 2))
            assert torch.allclose(model[place].weight, wanted, atol=1e-10)
            assert torch.allclose(model[place].bias, bias + (weight - wanted) @ mean)
            assert int(mask.sum()) == weight.numel() - weight.numel() // 2
            x = torch.relu(model[place](x))


@pytest.mark.parametrize("selection", ["sparsegpt", "admm"])
@pytest.mark.parametrize("net", [lambda: mlp(10, 8, 3), convnet])
def test_exact_counts(selection, net):
    model = net()
    data = (
        blobs(64, 10, 3)
        if isinstance(model[0], nn.Linear)
        else (torch.randn(20, 4, 6, 6), torch.arange(20) % 3)
    )
    levels = {"name": "explicit", "values": [0.25, 0.5, 0.75]}
    session = Session(
        model, recipe(selection=selection, repair="masked_least_squares", schedule=levels), data=data
    )
    before = session.kept
    for record in session.run():
        for name, kept in session.kept.items():
            assert int((~kept).sum()) == round(record.step / 4 * kept.numel())
            assert not bool((kept & ~before[name]).any())
        before = session.kept


@pytest.mark.parametrize("selection", ["sparsegpt", "admm"])
def test_patterns(selection):
    chosen = recipe(selection=selection, repair="masked_least_squares", shape={"name": "n:m", "n": 2, "m": 4})
    pruned = prune(mlp(12, 8, 4), chosen, blobs(64, 12, 4))
    for kept in pruned.kept.values():
        assert bool((kept.view(len(kept), -1, 4).sum(2) == 2).all())
    data = torch.randn(20, 4, 6, 6), torch.arange(20) % 3
    pruned = prune(convnet(), chosen, data)
    for kept in pruned.kept.values():  # of every four channels at each position of the kernel
        assert bool((kept.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all())


def test_the_search_costs_a_layer_less_than_magnitude():
    model, (inputs, targets) = mlp(30, 20, 4, dtype=torch.float64), blobs(200, 30, 4, dtype=torch.float64)
    inputs = inputs @ torch.randn(30, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = model[0](inputs)
    errors = {}
    for name, settings in {"admm": {"selection": "admm"}, "magnitude": {}}.items():
        chosen = recipe(repair="masked_least_squares", targets=["0"], **settings)
        pruned = prune(copy.deepcopy(model), chosen, (inputs, targets))
        errors[name] = float((pruned.model[0](inputs) - before).detach().square().mean())
    assert errors["admm"] < errors["magnitude"]


def test_what_is_refused():
    with pytest.raises(InputError, match="selection 'sparsegpt' is for single weights"):
        recipe(selection="sparsegpt", shape="unit")
    with pytest.raises(InputError, match="selection 'admm' needs data"):
        Session(mlp(4, 3), recipe(selection="admm"))
    assert alps().digest() != sparsegpt().digest()
    assert recipe().digest() == recipe(selection="lowest").digest()
