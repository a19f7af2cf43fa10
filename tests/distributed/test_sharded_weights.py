"""Weights that are shared out over processes are pruned to the masks that one process finds."""

import pytest
import torch

from prunekit.masks import Masks, lowest
from prunekit.pruning import prune
from ranks import needs_gloo, on_ranks
from sharded_weights_work import COUNTS, PLACEMENTS, RECIPES, masked_steps, network, ranked, values, work
from small_nets import blobs, recipe, same

pytestmark = needs_gloo


@pytest.fixture(scope="module")
def ranks():
    return on_ranks(work)


@pytest.fixture(scope="module")
def rankings():
    return on_ranks(ranked, 4)


@pytest.mark.parametrize("name", RECIPES)
def test_masks_are_those_of_one_process(ranks, name):
    expected = prune(network(), recipe(**RECIPES[name]))
    for rank in ranks:
        assert same(rank[name]["masks"], dict(expected.masks))
        assert same(rank[name]["model"], expected.model.state_dict())
        assert rank[name]["kept"] == expected.masks.kept
        assert all(rank[name]["shards"])
    assert not all(bool(mask.all()) for mask in expected.masks.values())


@pytest.mark.parametrize("name", RECIPES)
def test_counts_alone_are_exchanged(ranks, name):
    held = [rank[name]["held"] for rank in ranks]
    assert held[0] != held[1]
    assert [sum(rows) for rows in zip(*held, strict=True)] == ([3] if name == "one layer" else [17, 12, 3])
    for rank in ranks:
        assert rank[name]["exchanged"]
        assert all("reduce" in kind for kind in rank[name]["exchanged"])


def test_removed_weights_stay_zero_in_training_under_the_masks(ranks):
    model = network(ties=False, dtype=torch.float64)
    masks = prune(model, recipe()).masks
    masked_steps(model, masks, blobs(32, dtype=torch.float64))
    again = prune(model, recipe(schedule={"name": "one_shot", "sparsity": 0.7})).masks
    for rank in ranks:
        found = rank["trained"]
        assert same(found["masks"], dict(masks))
        for name, value in model.state_dict().items():
            assert torch.allclose(found["model"][name], value, atol=1e-9)
        assert all(bool((found["model"][name][~mask] == 0).all()) for name, mask in masks.items())
    assert same(ranks[0]["trained"]["again"], dict(again))
    assert again.sparsity == pytest.approx(0.7, abs=1e-2)


def test_scores_of_ones_own_are_ranked(ranks):
    assert same(ranks[0]["own scores"], dict(prune(network(ties=False), recipe()).masks))


def test_what_cannot_be_done_is_refused_by_all(ranks):
    for rank in ranks:
        score, schedule, order, values, scores = rank["refused"]
        for text in (score, schedule, order):
            assert "pruned in one step of the score 'magnitude'" in text
        assert values == "the weights of 4.weight are NaN or infinite in 1 places"
        assert scores == "there are no scores of the shape and the placements of 0.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", PLACEMENTS)
def test_the_lowest_of_all_are_those_of_one_ranking(rankings, kind, dtype):
    flat = torch.cat([each.flatten() for each in values().values()]).to(dtype)
    assert COUNTS[-1] == len(flat)
    for count in COUNTS:
        expected = lowest(flat, count)
        for rank in rankings:
            found = torch.cat([each.flatten() for each in rank[f"{kind} {dtype}"][str(count)]])
            assert torch.equal(found, expected)


def test_masks_in_one_process_count_as_before():
    assert Masks({"a": torch.tensor([True, False])}).kept == 1
