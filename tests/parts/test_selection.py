"""Selections in a recipe: exact counts, patterns, and the published algorithm as selection and repair."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import InputError, ModelError
from prunekit.methods import alps, correlation, sparsegpt
from prunekit.obs import choose_count, damped, left_to_right
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from small_nets import Tied, blobs, convnet, images, mlp


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


@pytest.mark.parametrize("selection", ["sparsegpt", "admm", "layer_l0"])
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


@pytest.mark.parametrize("selection", ["sparsegpt", "admm", "layer_l0"])
def test_patterns(selection):
    chosen = recipe(
        selection=selection, repair="masked_least_squares", granularity={"name": "n:m", "n": 2, "m": 4}
    )
    pruned = prune(mlp(12, 8, 4), chosen, blobs(64, 12, 4))
    for kept in pruned.kept.values():
        assert bool((kept.view(len(kept), -1, 4).sum(2) == 2).all())
    data = torch.randn(20, 4, 6, 6), torch.arange(20) % 3
    pruned = prune(convnet(), chosen, data)
    for kept in pruned.kept.values():  # of every four channels at each position of the kernel
        assert bool((kept.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all())


@pytest.mark.parametrize("selection", ["admm", "layer_l0"])
def test_the_search_costs_a_layer_less_than_magnitude(selection):
    model, (inputs, targets) = mlp(30, 20, 4, dtype=torch.float64), blobs(200, 30, 4, dtype=torch.float64)
    inputs = inputs @ torch.randn(30, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = model[0](inputs)
    errors = {}
    for name, settings in {"searched": {"selection": selection}, "magnitude": {}}.items():
        chosen = recipe(repair="masked_least_squares", targets=["0"], **settings)
        pruned = prune(copy.deepcopy(model), chosen, (inputs, targets))
        errors[name] = float((pruned.model[0](inputs) - before).detach().square().mean())
    assert errors["searched"] < errors["magnitude"]


def test_what_is_refused():
    with pytest.raises(
        InputError,
        match=r"selection 'sparsegpt' works on single weights .*: use the granularity 'weight' or 'n:m'",
    ):
        recipe(selection="sparsegpt", granularity="unit")
    with pytest.raises(InputError, match="selection 'admm' needs data"):
        Session(mlp(4, 3), recipe(selection="admm"))
    assert alps().digest() != sparsegpt().digest()
    assert recipe().digest() == recipe(selection="lowest").digest()


def halves(schedule=None, **settings):
    return Recipe.parse(
        {
            "score": "correlation",
            "selection": {"name": "correlated_halves", **settings},
            "allocation": "per_layer",
            "order": "backward",
            "schedule": schedule or {"name": "one_shot", "sparsity": 0.5},
        }
    )


@pytest.mark.parametrize("net", [lambda: mlp(10, 8, 3), convnet])
@pytest.mark.parametrize("within", ["row", "layer"])
def test_halves_are_drawn_by_the_seed_with_exact_counts(net, within):
    levels = [0.3, 0.5, 0.9]
    data = blobs(64, 10, 3) if isinstance(net()[0], nn.Linear) else images()
    masks = []
    for seed in (0, 0, 1):
        chosen = halves({"name": "explicit", "values": levels}, within=within)
        session = Session(net(), chosen, data=data, seed=seed)
        layers, before = list(session.kept), session.kept
        for record in session.run():
            level, place = divmod(record.step - 1, len(layers))
            name = layers[-1 - place]  # the top one first
            assert int((~session.kept[name]).sum()) == round(levels[level] * session.kept[name].numel())
            changed = [key for key in layers if not torch.equal(session.kept[key], before[key])]
            assert changed == [name]
            assert not bool((session.kept[name] & ~before[name]).any())
            before = session.kept
        masks.append(session.kept)
    one, same, other = masks
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_halves_in_a_layer_are_those_of_the_correlations():
    model, (inputs, targets) = mlp(20, 12, 3), blobs(80, 20, 3)
    with torch.no_grad():
        hidden = model[:2](inputs).double().numpy()
    r = np.corrcoef(inputs.double().numpy().T, hidden.T)[20:, :20]  # (neurons, inputs)
    chosen = halves(strong=1.0).model_copy(update={"targets": ("0",)})
    kept = prune(model, chosen, (inputs, targets)).kept["0.weight"].numpy()
    for row, mask in zip(r, kept, strict=True):
        for sign in (row >= 0, row < 0):
            strong = sorted(np.abs(row[sign]))[sign.sum() // 2 :]
            assert abs(mask[sign].sum() - sign.sum() / 2) < 1
            assert (np.abs(row[sign & mask]) >= min(strong) - 1e-6).sum() >= min(
                mask[sign].sum(), len(strong)
            )


def test_the_score_alone_keeps_the_strongest():
    model, (inputs, targets) = mlp(20, 12, 3), blobs(80, 20, 3)
    with torch.no_grad():
        hidden = model[:2](inputs).double().numpy()
    r = np.abs(np.corrcoef(inputs.double().numpy().T, hidden.T)[20:, :20])
    kept = (
        prune(model, recipe(score="correlation", targets=["0"]), (inputs, targets)).kept["0.weight"].numpy()
    )
    assert r[kept].min() > r[~kept].max()


def test_zeros_go_before_any_draw():
    model = mlp(10, 8, 3)
    with torch.no_grad():
        model[0].weight[:, :7] = 0
    pruned = prune(model, halves(), blobs(64, 10, 3))
    assert int(pruned.kept["0.weight"].sum()) == 40
    assert bool(pruned.kept["0.weight"][:, 7:].all())


def test_a_session_with_statistics_taken_once_goes_on_after_an_interruption():
    levels = {"name": "explicit", "values": [0.3, 0.6]}
    chosen = halves(levels).model_copy(update={"order": "all", "rank": "once", "statistics": "once"})
    data, masks = blobs(64, 10, 3), []
    for interrupted in (False, True):
        model = mlp(10, 8, 3)
        session = Session(model, chosen, data=data)
        session.advance()
        if interrupted:
            state, session = session.state_dict(), Session(model, chosen, data=data)
            session.load_state_dict(state)
        session.advance()
        masks.append(session.kept)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_what_halves_refuse():
    for strong in (-0.1, 1.5):
        with pytest.raises(InputError, match=f"correlated_halves: strong = {strong}: input should be"):
            halves(strong=strong)
    with pytest.raises(InputError, match="correlated_halves: strong = 7: input should be less than"):
        correlation(strong=7)
    with pytest.raises(
        InputError,
        match=r"'correlated_halves' works on single weights, .* 'n:m'.*: use the granularity 'weight'",
    ):
        recipe(selection="correlated_halves", granularity="n:m")
    with pytest.raises(InputError, match="score 'correlation' needs data, but no data is given"):
        Session(mlp(4, 3), halves())
    with pytest.raises(ModelError, match="Embedding"):
        halves().plan(Tied())


def test_the_score_serves_units_and_patterns():
    data = blobs(64, 12, 4)
    pruned = prune(mlp(12, 8, 4), recipe(score="correlation", granularity="unit"), data)
    assert [int(kept.sum()) for kept in pruned.kept.values()] == [4]
    pruned = prune(
        mlp(12, 8, 4), recipe(score="correlation", granularity={"name": "n:m", "n": 2, "m": 4}), data
    )
    assert all(bool((kept.view(len(kept), -1, 4).sum(2) == 2).all()) for kept in pruned.kept.values())


@pytest.mark.parametrize("within", ["row", "layer"])
@pytest.mark.parametrize(("sparsity", "left"), [(0.3, 0), (0.2, 8), (0.1, 16)])
def test_inputs_that_never_change_go_first(within, sparsity, left):
    """3 of 10 inputs of 8 neurons: at 20 % removed 8 of their 24 connections are left, at 30 % none."""
    inputs, targets = blobs(64, 10, 3)
    inputs[:, [1, 4]] = 0.5
    inputs[:, 7] = 0
    chosen = halves({"name": "one_shot", "sparsity": sparsity}, within=within)
    kept = prune(mlp(10, 8, 3), chosen, (inputs, targets)).kept["0.weight"]
    assert int((~kept).sum()) == round(sparsity * 80)
    assert int(kept[:, [1, 4, 7]].sum()) == left
    if left:
        assert bool(kept[:, [0, 2, 3, 5, 6, 8, 9]].all())
