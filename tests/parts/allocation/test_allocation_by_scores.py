"""Below the mean: which scores go, round by round, against a plain loop."""

import math
import statistics

import pytest
import torch
from allocation_context import context_of
from hypothesis import assume, given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.methods import recipe as method
from prunekit.parts.allocation import BelowMean
from prunekit.pruning import prune
from prunekit.recipe import Recipe
from unit_recipes import data, net

units = st.lists(st.tuples(st.floats(0, 10), st.booleans()), min_size=2, max_size=30)


@given(units, st.sampled_from([0.5, 1.0, 1.5]), st.sampled_from([0.0, 1.0]))
def test_against_a_loop(units, tau, deviations):
    scores, kept = (list(each) for each in zip(*units, strict=True))
    left = [score for score, on in units if on]
    lost, reachable = len(scores) - len(left), len(scores) - math.ceil(0.25 * len(scores))
    wanted = lost
    if left:
        bound = tau * statistics.fmean(left) - deviations * statistics.pstdev(left)
        assume(all(abs(score - bound) > 1e-9 for score in left))  # or rounding decides
        wanted = max(lost, min(lost + sum(score < bound for score in left), reachable))
    masks = Masks({"a": torch.tensor(kept)})
    given_ = context_of({"a": torch.tensor(scores, dtype=torch.float64)}, None, masks=masks)
    assert BelowMean(tau=tau, deviations=deviations, floor=0.25).amounts(given_) == {"a": wanted}


def test_equal_scores_all_stay():
    for value in (0.1, 1 / 3, 1e-30):
        scores = {"a": torch.full((13,), value)}
        assert BelowMean().amounts(context_of(scores, None)) == {"a": 0}


def test_layers_by_themselves():
    scores = {"a": torch.tensor([1.0, 2.0, 6.0]), "b": torch.tensor([100.0, 200.0, 600.0, 700.0])}
    assert BelowMean().amounts(context_of(scores, None)) == {"a": 2, "b": 2}
    assert BelowMean(tau=0.5).amounts(context_of(scores, None)) == {"a": 1, "b": 1}
    assert BelowMean(tau=0).amounts(context_of(scores, None)) == {"a": 0, "b": 0}


def test_a_sparsity_that_nobody_asked_for():
    with pytest.raises(InputError, match="use the schedule 'rounds'"):
        Recipe.parse({"allocation": "below_mean", "schedule": {"name": "one_shot", "sparsity": 0.5}})


def test_n2ps_takes_what_is_below_the_mean_of_inputs_and_units():
    """One round on 6-7-5-4: the significance as a double loop over examples and weights."""
    model, (inputs, targets) = net(6, 7, 5, 4).requires_grad_(False), data(6)
    values, wanted = inputs, {}
    for layer, name in ((0, "inputs"), (2, "0"), (4, "2")):
        weight = model[layer].weight
        significance = [
            statistics.fmean(
                sum(abs(float(example[unit] * weight[j, unit])) for j in range(len(weight)))
                for example in values
            )
            for unit in range(weight.shape[1])
        ]
        wanted[name] = [each >= statistics.fmean(significance) for each in significance]
        values = torch.sigmoid(model[layer](values)).detach()
    chosen = Recipe.parse(
        {"score": "n2ps", "shape": {"name": "unit", "inputs": True}, "allocation": "below_mean",
         "schedule": "rounds"}
    )  # fmt: skip
    pruned = prune(model, chosen, (inputs, targets))
    assert [flags.tolist() for flags in pruned.kept.values()] == list(wanted.values())


def test_apoz_goes_layer_by_layer():
    chosen = method("apoz", rounds=2)
    steps = chosen.plan(net(6, 7, 5, 4)).steps
    assert [step.layers for step in steps] == [("0",), ("2",), ("0",), ("2",)]
