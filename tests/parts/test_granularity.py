import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import InputError
from prunekit.parts.granularity import NM, Weight
from small_nets import convnet, mlp, recipe


@given(st.integers(0, 30), st.integers(0, 2**32))
def test_weights_go_by_rank_alone(count, seed):
    scores = np.random.default_rng(seed).integers(0, 4, (5, 6)).astype(np.float32)
    kept = Weight().select(torch.from_numpy(scores), count).numpy()
    assert (~kept).sum() == count
    if 0 < count < 30:
        assert scores[~kept].max() <= scores[kept].min()


def groups_of(array: np.ndarray, m: int) -> np.ndarray:
    """(group, member) for a weight of any number of dimensions, written out by loops."""
    out, inputs = array.shape[:2]
    rest = array.reshape(out, inputs, -1)
    return np.array(
        [rest[o, i : i + m, k] for o in range(out) for i in range(0, inputs, m) for k in range(rest.shape[2])]
    )


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 5), (3, 8, 3, 2), (2, 8, 1, 3, 2)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])
def test_every_group_keeps_n_of_its_best(shape, n, m):
    scores = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)  # many ties
    count = scores.size * (m - n) // m
    kept = NM(n=n, m=m).select(torch.from_numpy(scores), count)
    assert kept.shape == scores.shape
    of_scores, of_kept = groups_of(scores, m), groups_of(kept.numpy(), m)
    assert (of_kept.sum(1) == n).all()
    for values, chosen in zip(of_scores, of_kept, strict=True):
        assert values[chosen].sum() == np.sort(values)[m - n :].sum()


def test_layout_in_memory_does_not_matter():
    scores = torch.rand(4, 8, 3, 3)
    last = scores.to(memory_format=torch.channels_last)
    assert torch.equal(NM().select(scores, 144), NM().select(last, 144))


def test_an_uneven_count_is_refused():
    with pytest.raises(InputError, match="5 weights cannot be removed evenly from 4 groups of 4"):
        NM().select(torch.rand(2, 8), 5)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4)])
def test_patterns_that_remove_nothing(n, m):
    with pytest.raises(InputError, match=rf"n = {n} of m = {m} removes nothing"):
        NM(n=n, m=m)


def pattern(**settings):
    return recipe(granularity="n:m", allocation="per_layer", **settings)


def test_inputs_that_do_not_divide():
    with pytest.raises(InputError, match=r"2\.weight has 6 inputs, which 2:4 does not divide: name '2' in"):
        pattern().plan(mlp(8, 6, 3))
    assert pattern(ignore=["2"]).plan(mlp(8, 6, 3)).names == ["0.weight"]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            {"name": "one_shot", "sparsity": 0.6},
            "0.6 does not fit the granularity 2:4.*1/4 up to 0.5",
        ),
        ({"name": "one_shot", "sparsity": 0.75}, "sparsity 0.75 does not fit"),
        ({"name": "linear", "sparsity": 0.5, "steps": 3}, "does not fit the granularity 2:4"),
        ({"name": "one_shot", "sparsity": 0.25}, "ends at sparsity 0.25, the granularity 2:4 at 0.5"),
    ],
)
def test_sparsities_that_do_not_fit(schedule, message):
    with pytest.raises(InputError, match=message):
        pattern(schedule=schedule).plan(mlp(8, 4, 4))


def test_rounds_state_no_sparsity():
    given_ = {"name": "manual", "sparsities": {"0": 0.5}}
    with pytest.raises(InputError, match="2:4 needs a schedule that states its sparsity"):
        recipe(granularity="n:m", allocation=given_, schedule="allocation_decides").plan(mlp(8, 4, 4))


@pytest.mark.parametrize("allocation", ["erk", {"name": "per_layer", "output_rate": 0.5}])
def test_layers_must_lose_the_same_fraction(allocation):
    with pytest.raises(InputError, match=r"'n:m' takes the same fraction of every layer.*use 'per_layer'"):
        recipe(granularity="n:m", allocation=allocation).plan(mlp(8, 4, 4))


def test_one_layer_alone_fits_any_allocation_that_compares_no_scores():
    assert len(recipe(granularity="n:m", allocation="erk").plan(mlp(8, 4)).steps) == 1
    with pytest.raises(InputError, match=r"'global' compares layers.*'per_layer'"):
        recipe(granularity="n:m", allocation="global")


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(8, 8, 3), nn.ConvTranspose1d(8, 8, 3)])
def test_layers_whose_inputs_come_first(layer):
    with pytest.raises(InputError, match=r"has its inputs in the first dimension.*in `ignore`"):
        pattern().plan(nn.Sequential(layer))


def test_grouped_convolutions_count_their_own_inputs():
    assert pattern().plan(convnet(channels=8)).names == ["0.weight", "3.weight", "7.weight"]
    with pytest.raises(InputError, match=r"3\.weight has 2 inputs"):
        pattern().plan(convnet(channels=4))
