"""Methods for small files: each part of what they do is there, and the file is what it says."""

import pytest
import torch
from torch import nn

from prunekit import Recipe, methods, prune
from prunekit.errors import InputError
from prunekit.packing import pack, unpack
from small_nets import blobs, mlp

TRAINING = {"batch_size": 32, "optimizer": "sgd", "lr": 0.05}


def network() -> nn.Sequential:
    return mlp(12, 40, 20, 4)


def test_the_smallest_file_holds_the_network_and_is_smaller_than_with_shared_values(tmp_path):
    data = blobs(256, 12, 4)
    sizes = {}
    for name, more in (
        ("deep_compression", {"steps": 4}),
        ("smallest", {"steps": 8, "rounded_epochs": 4, "rate": 0.003}),
    ):
        model = network()
        chosen = methods.recipe(name, sparsity=0.8, epochs=4, training=TRAINING, **more)
        pruned = prune(model, chosen, data, seed=1)
        assert all(mask.any() for mask in pruned.masks.values())
        before = model(data[0])
        path = pack(pruned, tmp_path / name, coding="adaptive")
        torch.testing.assert_close(unpack(path, network())(data[0]), before, rtol=0, atol=0)
        sizes[name] = path.stat().st_size
    assert sizes["smallest"] < sizes["deep_compression"]


def test_a_taught_recipe_learns_from_the_teacher_that_is_given():
    data = blobs(256, 12, 4)
    found = []
    for teacher in (network(), mlp(12, 60, 4, seed=3)):
        model = network()
        chosen = methods.recipe(
            "smallest", epochs=2, rounded_epochs=1, steps=4, taught=True, training=TRAINING
        )
        prune(model, chosen, data, teacher=teacher, seed=1)
        found.append(model[0].weight.detach().clone())
    assert not torch.equal(*found)


def test_units_in_order_keep_masks_and_function(tmp_path):
    data = blobs(256, 12, 4)
    pruned = prune(network(), methods.recipe("magnitude", sparsity=0.7), data)
    before = pruned.model(data[0])
    pruned.reorder(data[0][:2])
    torch.testing.assert_close(pruned.model(data[0]), before)
    for name, mask in pruned.masks.items():
        assert torch.equal(pruned.model.get_parameter(name) != 0, mask)
        assert torch.equal(pruned.kept[name], mask)
    pack(pruned, tmp_path / "file")


def test_units_that_are_masked_are_not_put_in_order():
    recipe = Recipe(granularity="unit", schedule={"name": "one_shot", "sparsity": 0.5})
    pruned = prune(network(), recipe, blobs(64, 12, 4))
    with pytest.raises(InputError, match="shrink"):
        pruned.reorder(torch.zeros(2, 12))
