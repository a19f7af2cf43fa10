"""A property of every repair: what the mask keeps is not zeroed, whatever the inputs on the sample are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit import Recipe, prune
from prunekit.parts.repair import Repair

REPAIRS = {
    name: "weight" if "weights" in repair.works_on else "unit"
    for name, repair in Repair.own_members().items()
}


@pytest.mark.parametrize("name", REPAIRS)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    constant=st.integers(0, 5),
    dead=st.integers(0, 5),
    twins=st.integers(0, 4),
    biased=st.booleans(),
    sparsity=st.sampled_from([0.25, 0.5, 0.75]),
)
def test_what_the_mask_keeps_is_not_zeroed(name, seed, constant, dead, twins, biased, sparsity):
    torch.manual_seed(seed)
    biased = biased or REPAIRS[name] == "unit"  # some repairs of units need a bias to put constants into
    model = nn.Sequential(
        nn.Linear(20, 12, bias=biased), nn.ReLU(), nn.Linear(12, 8, bias=biased), nn.ReLU(), nn.Linear(8, 4)
    )
    inputs, targets = torch.randn(64, 20), torch.randint(4, (64,))
    inputs[:, :constant] = 1.5
    inputs[:, 5 : 5 + dead] = 0
    inputs[:, 10 : 10 + twins] = inputs[:, 15 : 15 + twins]
    recipe = Recipe(
        score="magnitude",
        granularity=REPAIRS[name],
        repair=name,
        schedule={"name": "one_shot", "sparsity": sparsity},
    )
    pruned = prune(model, recipe, (inputs, targets))
    for parameter, mask in pruned.masks.items():
        assert torch.equal(pruned.model.get_parameter(parameter) != 0, mask), parameter
