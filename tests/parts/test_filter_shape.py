"""Filter shapes as the granularity chooses them, against loops over columns."""

import pytest
import torch
from torch import nn

from prunekit import Recipe, methods, prune
from prunekit.errors import InputError, ModelError
from small_nets import convnet, copied, mlp, same

HALF = {"name": "one_shot", "sparsity": 0.5}
DECIDES = {"name": "allocation_decides"}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    )


def columns(weight: torch.Tensor) -> dict[tuple[int, ...], torch.Tensor]:
    _, channels, height, width = weight.shape
    return {
        (c, i, j): weight[:, c, i, j].detach()
        for c in range(channels)
        for i in range(height)
        for j in range(width)
    }


@pytest.mark.parametrize(("pool", "order"), [("sum", 1), ("l2", 2)])
def test_the_columns_of_the_smallest_norm_go_whole(pool, order):
    model = net()
    before = copied(model)
    recipe = {
        "granularity": {"name": "filter_shape", "pool": pool},
        "schedule": {"name": "one_shot", "sparsity": 0.5},
    }
    masks = prune(model, Recipe.parse({**recipe, "allocation": "per_layer"})).masks
    assert set(masks) == {"0.weight", "2.weight"}
    for name, mask in masks.items():
        found = columns(before[name])
        lowest = sorted(found, key=lambda place: float(found[place].norm(order)))[: len(found) // 2]
        for place in found:
            kept = mask[(slice(None), *place)]
            assert not kept.any() if place in lowest else kept.all()


def test_what_an_allocation_asks_for_beyond_whole_columns_is_left_out():
    recipe = {
        "granularity": "filter_shape",
        "schedule": {"name": "one_shot", "sparsity": 0.5},
        "targets": ["0"],
    }
    pruned = prune(net(), Recipe.parse(recipe))  # 18 of 36 weights are four columns of four and a half
    assert pruned.history[-1].layers == {"0.weight": 36 - 16}


def test_columns_of_zeros_go_and_zeros_elsewhere_do_not():
    model = net()
    with torch.no_grad():
        model[2].weight[:, 1, 0, 2] = 0.0
        model[2].weight[:, 3, 2, 2] = 0.0
        model[2].weight[:3, 0, 0, 0] = 0.0
        model[0].weight[:, 0, 1, 1] = 0.0
    before = copied(model)
    chosen = Recipe.parse({"granularity": "filter_shape", "allocation": "zeros", "schedule": DECIDES})
    masks = prune(model, chosen).masks
    assert same(copied(model), before)
    assert int((~masks["0.weight"]).sum()) == 4
    assert int((~masks["2.weight"]).sum()) == 12
    assert not masks["2.weight"][:, 1, 0, 2].any()
    assert not masks["2.weight"][:, 3, 2, 2].any()


def test_columns_never_come_back_over_the_steps():
    model = net()
    recipe = {"granularity": "filter_shape", "schedule": {"name": "linear", "sparsity": 0.75, "steps": 3}}
    pruned = prune(model, Recipe.parse(recipe))
    kept = [record.layers["2.weight"] for record in pruned.history]
    assert kept == [6 * 27, 6 * 18, 6 * 9]
    for mask in pruned.masks.values():
        assert torch.equal(mask, mask.any(0, keepdim=True).expand_as(mask))


@pytest.mark.parametrize(
    ("model", "settings", "error", "said"),
    [
        (mlp(4, 5, 3), {}, ModelError, "no convolution"),
        (net(), {"targets": ["5"]}, InputError, "5.weight of a Linear has no filter shapes"),
        (convnet(), {}, InputError, "filters of 3.weight read different channels"),
    ],
)
def test_layers_without_filter_shapes_are_refused(model, settings, error, said):
    recipe = {"granularity": "filter_shape", "schedule": HALF, **settings}
    with pytest.raises(error, match=said):
        prune(model, Recipe.parse(recipe))


IMAGES = (torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3)
TRAINING = {"batch_size": 16, "lr": 0.01, "optimizer": "sgd"}


@pytest.mark.parametrize("name", ["ssl_filters", "ssl_filter_shapes", "brain_damage"])
def test_the_methods_remove_groups_whole_and_leave_a_network_that_is_trained(name):
    model = net()
    amount = {"sparsity": 0.5, "steps": 2} if name == "brain_damage" else {}
    recipe = methods.recipe(name, strength=1.0, epochs=30, training=TRAINING, **amount)
    pruned = prune(model, recipe, IMAGES)
    assert 0 < pruned.kept.kept < pruned.kept.total
    dims = (1, 2, 3) if name == "ssl_filters" else (0,)
    for layer in ("0.weight", "2.weight"):
        mask = pruned.masks[layer]
        if name != "ssl_filters":
            assert torch.equal(mask, mask.any(dims, keepdim=True).expand_as(mask))
        assert not model.get_parameter(layer)[~mask].any()
    assert pruned.history[-1].train_loss is not None
