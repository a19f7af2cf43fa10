"""Maxout layers and their pruning, against loops and networks built smaller by hand."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import InputError
from prunekit.graph.pieces import shrink_pieces
from prunekit.methods import maxout_pruning
from prunekit.models import Maxout, ModelSettings, create
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from prunekit.saving import load_pretrained, save_pretrained


def conv_net(pieces=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        Maxout(nn.Conv2d(1, 4 * pieces, 3), pieces),
        nn.MaxPool2d(2),
        nn.Flatten(),
        Maxout(nn.Linear(36, 5 * pieces), pieces),
        nn.Linear(5, 3),
    )


def examples(count=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 1, 8, 8, generator=generator)
    return inputs, torch.randint(3, (count,), generator=generator)


def test_the_maximum_of_neighbours():
    layer = Maxout(nn.Linear(4, 6), 3)
    x = torch.randn(7, 4)
    rows = layer.layer(x)
    assert torch.equal(layer(x), torch.stack([rows[:, :3].max(1).values, rows[:, 3:].max(1).values], 1))
    assert Maxout(nn.Conv2d(1, 6, 3), 2)(torch.randn(2, 1, 5, 5)).shape == (2, 3, 3, 3)


def test_a_removed_piece_takes_no_part():
    layer = Maxout(nn.Linear(4, 4), 2)
    with torch.no_grad():
        layer.layer.bias.fill_(-100.0)
        layer.layer.weight[1] = 0
        layer.layer.bias[1] = 0
    found = layer(torch.randn(5, 4))
    assert bool((found[:, 0] < -50).all())  # and not the 0 of the removed one
    with torch.no_grad():
        layer.layer.weight.zero_()
        layer.layer.bias.zero_()
    assert bool((layer(torch.randn(5, 4)) == 0).all())


def test_pieces_must_divide_the_outputs():
    with pytest.raises(InputError, match="4 pieces does not divide 6 outputs"):
        Maxout(nn.Linear(3, 6), 4)


def test_the_least_used_piece_of_each_unit_goes():
    model, (inputs, targets) = conv_net(), examples()
    before = copy.deepcopy(model)
    with torch.no_grad():
        maps = before[0].layer(inputs)
        rows = before[3].layer(before[:3](inputs))
    counts = {"0": torch.zeros(4, 3), "3": torch.zeros(5, 3)}
    for n in range(len(inputs)):
        for unit in range(4):
            for y in range(6):
                for x in range(6):
                    counts["0"][unit, maps[n, 3 * unit : 3 * unit + 3, y, x].argmax()] += 1
        for unit in range(5):
            counts["3"][unit, rows[n, 3 * unit : 3 * unit + 3].argmax()] += 1
    pruned = prune(model, maxout_pruning(pieces=3, left=2, epochs=0), (inputs, targets))
    for name, count in counts.items():
        for unit, flags in enumerate(pruned.kept[name]):
            gone = (~flags).nonzero().flatten().tolist()
            assert gone == [int(count[unit].argmin())]


@given(left=st.integers(1, 3), seed=st.integers(0, 100))
def test_shrinking_keeps_the_function(left, seed):
    model, data = conv_net(pieces=4, seed=seed), examples(12, seed)
    pruned = prune(model, maxout_pruning(pieces=4, left=left, epochs=0), data)
    assert pruned.kept.kept == 9 * left
    with torch.no_grad():
        masked = model(data[0])
        result = pruned.shrink(data[0])
        assert torch.allclose(model(data[0]), masked, rtol=1e-5, atol=1e-6)
    # by hand: rows of a 3x3 kernel, rows of 36 inputs, and the last layer
    assert result.parameters_after == 4 * left * 10 + 5 * left * 37 + 18
    assert model[0].pieces == model[3].pieces == left
    assert (model[0].layer.out_channels, model[3].layer.out_features) == (4 * left, 5 * left)


def test_two_rounds_with_retraining_leave_one_piece():
    model, data = conv_net(), examples()
    pruned = prune(model, maxout_pruning(pieces=3, epochs=1), data)
    assert [record.kept for record in pruned.history] == [18, 9]
    assert bool((model[0].layer.weight.view(4, 3, -1) != 0).any(2).sum(1).eq(1).all())


def test_saved_and_loaded_as_small_as_it_is(tmp_path):
    settings = ModelSettings(name="maxout_lenet5")
    model = create(settings, (1, 28, 28), 10, seed=0)
    full = sum(p.numel() for p in model.parameters())
    data = torch.randn(8, 1, 28, 28), torch.arange(8)
    pruned = prune(model, maxout_pruning(epochs=0), data)
    pruned.shrink(data[0])
    # 20 and 52 filters, 256 neurons, in fours: see the table of the paper, 74 % of the parameters
    assert full == 520 + 52 * 126 + 256 * 209 + 650
    assert sum(p.numel() for p in model.parameters()) == 130 + 13 * 126 + 64 * 209 + 650
    save_pretrained(pruned, tmp_path / "saved")
    loaded = load_pretrained(tmp_path / "saved", create(settings, (1, 28, 28), 10, seed=1))
    assert torch.equal(loaded.eval()(data[0]), model.eval()(data[0]))


def test_magnitude_and_lots_choose_pieces_too():
    for score in ("magnitude", "random"):
        recipe = Recipe.parse(
            {
                "score": score,
                "granularity": "maxout_piece",
                "allocation": "per_layer",
                "schedule": {"name": "one_shot", "sparsity": 1 / 3},
            }
        )
        pruned = prune(conv_net(), recipe)
        assert all(bool((flags.sum(1) == 2).all()) for flags in pruned.kept.values())


def test_layers_lose_pieces_by_themselves_where_the_allocation_says_so():
    model = create({"name": "maxout_lenet5"}, (1, 28, 28), 10, seed=0)
    recipe = Recipe.parse(
        {
            "score": "magnitude",
            "granularity": "maxout_piece",
            "allocation": {"name": "manual", "sparsities": {"conv*": 0.25, "fc1": 0.75}},
            "schedule": {"name": "allocation_decides", "steps": 3},
        }
    )
    pruned = prune(model, recipe)
    left = [[int(flags.sum(1).unique().item()) for flags in pruned.kept.values()]]
    assert left == [[3, 3, 1]]
    assert [record.layers["fc1"] for record in pruned.history] == [192, 128, 64]
    assert [record.layers["conv2"] for record in pruned.history] == [52, 52, 39]


def test_what_is_refused():
    with pytest.raises(InputError, match="chooses no maxout layer"):
        Session(
            nn.Sequential(nn.Linear(3, 3)), maxout_pruning(), data=(torch.randn(4, 3), torch.arange(4) % 3)
        )
    with pytest.raises(InputError, match="multiples of 1/3 up to"):
        Session(conv_net(), maxout_pruning(pieces=4), data=examples())
    with pytest.raises(InputError, match="use the granularity 'maxout_piece'"):
        Recipe.parse({"score": "maxout_wins", "schedule": {"name": "one_shot", "sparsity": 0.5}})
    flags = torch.ones(4, 3, dtype=torch.bool)
    flags[0, 0] = False
    with pytest.raises(InputError, match="all units must keep the same number"):
        shrink_pieces(conv_net(), examples()[0], {"0": flags})
    with pytest.raises(InputError, match="no maxout layer, it is a Linear"):
        shrink_pieces(conv_net(), examples()[0], {"4": flags})
