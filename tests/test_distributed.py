"""Two processes that train together prune together, though each sees data of its own."""

import pytest
import torch

from prunekit.pruning import prune
from ranks import needs_gloo, on_ranks
from small_nets import blobs, mlp, recipe, same
from two_processes import RECIPES, work

pytestmark = needs_gloo


@pytest.fixture(scope="module")
def ranks():
    return on_ranks(work)


@pytest.mark.parametrize("name", [*RECIPES, "attached", "one without data"])
def test_both_have_the_same_masks_and_weights(ranks, name):
    one, other = (rank[name] for rank in ranks)
    assert same(one["masks"], other["masks"])
    assert same(one["model"], other["model"])
    for key, mask in one["masks"].items():
        assert bool((one["model"][key][~mask] == 0).all())


@pytest.mark.parametrize("name", ["gradient", "weight gradient", "sensitivity", "correlation"])
def test_they_are_those_of_all_data_together(ranks, name):
    halves = [blobs(64, seed=rank) for rank in (0, 1)]
    data = tuple(torch.cat(parts) for parts in zip(*halves, strict=True))
    expected = prune(mlp(10, 16, 3), recipe(**RECIPES[name]), data).masks
    alone = prune(mlp(10, 16, 3), recipe(**RECIPES[name]), halves[0]).masks
    found = ranks[0][name]["masks"]
    different = {
        key: sum(int((masks[layer] != found[layer]).sum()) for layer in found)
        for key, masks in (("together", expected), ("alone", alone))
    }
    assert different["together"] <= 2  # sums in another order may swap two neighbours
    assert different["alone"] > 2


@pytest.mark.parametrize("name", ["least squares", "stand-ins"])
def test_repairs_are_those_of_all_data_together(ranks, name):
    halves = [blobs(64, seed=rank) for rank in (0, 1)]
    data = tuple(torch.cat(parts) for parts in zip(*halves, strict=True))
    expected = prune(mlp(10, 16, 3), recipe(**RECIPES[name]), data).model.state_dict()
    alone = prune(mlp(10, 16, 3), recipe(**RECIPES[name]), halves[0]).model.state_dict()
    found = ranks[0][name]["model"]
    assert all(torch.allclose(found[key], expected[key], atol=1e-5) for key in found)
    assert not all(torch.allclose(found[key], alone[key], atol=1e-3) for key in found)


def test_moments_of_inputs_are_those_of_all_data_together(ranks):
    data = tuple(torch.cat(parts) for parts in zip(*(blobs(64, seed=rank) for rank in (0, 1)), strict=True))
    expected = prune(mlp(10, 16, 3), recipe(**RECIPES["layer obs"]), data)
    found = ranks[0]["layer obs"]
    assert same(dict(expected.masks), found["masks"])
    state = expected.model.state_dict()
    assert all(torch.allclose(found["model"][key], state[key], atol=1e-5) for key in state)


def test_a_process_without_data_adds_nothing_to_moments_of_inputs(ranks):
    expected = prune(mlp(10, 16, 3), recipe(**RECIPES["layer obs"]), blobs(64, seed=0))
    assert same(dict(expected.masks), ranks[0]["one without data"]["masks"])


def test_all_processes_say_what_is_wrong_on_one(ranks):
    for rank in ranks:
        empty, not_finite, units = rank["none with data"]
        assert empty == "fine"
        assert "the inputs of the layer '0' are not finite" in not_finite
        assert "empty on 1 of 2 processes" in units


def test_removed_weights_stay_zero_in_the_users_loop(ranks):
    assert ranks[0]["attached"]["zeros"] == [0, 0, *[round(0.3 * 208)] * 3, *[round(0.6 * 208)] * 3]
