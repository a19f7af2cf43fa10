"""Wanda by hand, and the allocation that looks at their outliers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunekit.masks import Masks
from prunekit.methods import wanda
from prunekit.parts.allocation import OWL
from prunekit.parts.context import Step, StepContext
from prunekit.parts.scores import Wanda
from prunekit.pruning import prune
from prunekit.statistics import StatContext, collect
from small_nets import blobs, mlp


def scores_of(score, model, inputs, targets):
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    loss = nn.functional.cross_entropy
    found = collect(StatContext(model, names), [(inputs, targets)], score.needs, loss=loss)
    weights = {name: model.get_parameter(name).detach() for name in names}
    return score(StepContext(weights, found, model))


def test_wanda_by_hand():
    model, (inputs, targets) = mlp(10, 6, 3), blobs(40, 10, 3)
    found = scores_of(Wanda(within="layer"), model, inputs, targets)["2.weight"]
    ranks = scores_of(Wanda(), model, inputs, targets)["2.weight"]
    hidden = torch.relu(model[0](inputs)).detach().double()
    for j in range(3):
        row = [
            float(model[2].weight.detach()[j, i].abs()) * float(hidden[:, i].square().mean()) ** 0.5
            for i in range(6)
        ]
        assert found[j].tolist() == pytest.approx(row, rel=1e-5)
        assert ranks[j].tolist() == [sorted(row).index(value) for value in row]


def test_every_row_loses_the_same():
    pruned = prune(mlp(12, 8, 4), wanda(sparsity=0.5), blobs(64, 12, 4))
    assert bool((pruned.kept["0.weight"].sum(1) == 6).all())
    assert bool((pruned.kept["2.weight"].sum(1) == 4).all())


@given(sparsity=st.floats(0.05, 0.9), spread=st.floats(0, 0.3), seed=st.integers(0, 50))
def test_outliers_keep_a_layer_dense(sparsity, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(10, 20, generator=generator) for name in "abc"}
    scores["b"][:, 0] = 100.0
    context = StepContext(
        step=Step(sparsity=sparsity),
        scores=scores,
        weights=scores,
        kept=Masks({name: torch.ones(10, 20, dtype=torch.bool) for name in scores}),
    )
    amounts = OWL(spread=spread, floor=0).amounts(context)
    assert sum(amounts.values()) == round(sparsity * 600)
    assert amounts["b"] <= min(amounts["a"], amounts["c"]) + 1
    if 0.1 < sparsity < 0.6 and spread < 0.05:
        # by hand: two layers without outliers lie 2λ/3 above, the one with them 4λ/3 below
        assert amounts["b"] == pytest.approx(200 * (sparsity - 4 * spread / 3), abs=1.5)
