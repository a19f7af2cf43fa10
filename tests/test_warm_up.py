"""A training before the first removal, as the recipe asks for it, and the removal of what it made zero."""

import copy

import pytest
import torch

from prunekit import Recipe, prune
from prunekit.errors import InputError
from prunekit.seeds import derive
from prunekit.training import Training, train
from small_nets import blobs, copied, mlp, same

DECIDES = {"name": "allocation_decides"}


def test_the_network_is_trained_before_the_first_removal_by_the_recipes_own_settings() -> None:
    data, training = blobs(48), {"iterations": 7, "lr": 0.01, "batch_size": 16}
    chosen = Recipe.parse({"warm_up": training, "schedule": {"name": "one_shot", "sparsity": 0.5}})
    by_hand = mlp(10, 8, 3)
    train(by_hand, data, Training.parse(training), seed=derive(3, "training", "warm_up", "warm_up"))
    wanted = prune(by_hand, Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}})).masks
    found = prune(mlp(10, 8, 3), chosen, data, seed=3)
    assert found.masks == wanted
    assert same(copied(found.model), copied(by_hand))


def test_a_loop_of_ones_own_is_the_training() -> None:
    net = mlp(10, 8, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    chosen = Recipe.parse({"warm_up": {}, "schedule": {"name": "one_shot", "sparsity": 0.5}})
    session = chosen.attach(net, optimizer)
    with pytest.raises(InputError, match="the recipe's warm_up is a training: attach"):
        session.advance()
    inputs, targets = blobs(16)
    torch.nn.functional.cross_entropy(net(inputs), targets).backward()
    optimizer.step()
    assert session.advance() is not None


def test_without_data_a_warm_up_is_refused() -> None:
    chosen = Recipe.parse({"warm_up": {}, "schedule": {"name": "one_shot", "sparsity": 0.5}})
    with pytest.raises(InputError, match="the recipe's warm_up needs data"):
        prune(mlp(10, 8, 3), chosen)


def test_what_is_zero_goes_and_nothing_else() -> None:
    net = mlp(10, 8, 3)
    with torch.no_grad():
        net[0].weight[2, :4] = 0.0
        net[2].weight[1] = 0.0
    before = copied(net)
    pruned = prune(net, Recipe.parse({"allocation": "zeros", "schedule": DECIDES}))
    assert {name: int((~mask).sum()) for name, mask in pruned.masks.items()} == {
        "0.weight": 4,
        "2.weight": 8,
    }
    assert same(before, copied(net))


def test_a_unit_of_zeros_goes_and_the_network_shrinks_to_the_same_function() -> None:
    net = mlp(10, 8, 3)
    with torch.no_grad():
        for unit in (1, 6):
            net[0].weight[unit], net[0].bias[unit] = 0.0, 0.0
    chosen = Recipe.parse({"granularity": "unit", "allocation": "zeros", "schedule": DECIDES})
    inputs, _ = blobs(16)
    wanted = copy.deepcopy(net)(inputs)
    small = prune(net, chosen, example_inputs=inputs[:2]).shrink(inputs[:2])
    assert small.model[0].out_features == 6
    torch.testing.assert_close(small.model(inputs), wanted)


def test_the_floor_holds_where_all_is_zero() -> None:
    net = mlp(10, 8, 3)
    with torch.no_grad():
        net[0].weight.zero_()
    # a parameter that is zero as a whole does not count as removed: its floor of one weight is kept
    pruned = prune(net, Recipe.parse({"allocation": "zeros", "schedule": DECIDES}))
    assert pruned.kept["0.weight"].sum() == 1
