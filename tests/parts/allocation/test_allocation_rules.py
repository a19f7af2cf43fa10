"""Allocations by rule: the amounts by hand, by a plain loop, and the laws that they keep."""

import math
import re
import statistics

import numpy as np
import pytest
import torch
from allocation_context import context_of
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq

from prunekit.errors import InputError
from prunekit.masks import Masks, lowest
from prunekit.methods import recipe as method
from prunekit.parts.allocation import ERK, BelowMean, Global, Manual, NoPruning, PerLayer, Threshold
from prunekit.parts.allocation.rules import share_out
from prunekit.parts.schedule import Cubic
from prunekit.pruning import prune
from prunekit.recipe import Recipe
from small_nets import mlp, recipe
from unit_recipes import data, net

LAYERS = st.lists(
    st.tuples(st.integers(0, 10**6), st.floats(0, 1), st.floats(-10, 2e6)), min_size=1, max_size=12
)


@given(LAYERS, st.floats(0, 1))
def test_the_sum_is_exact_and_bounds_hold(layers, share):
    capacity = {str(i): size for i, (size, _, _) in enumerate(layers)}
    least = {str(i): int(size * part) for i, (size, part, _) in enumerate(layers)}
    wanted = {str(i): value for i, (_, _, value) in enumerate(layers)}
    low, high = sum(least.values()), sum(capacity.values())
    total = low + round(share * (high - low))
    found = share_out(total, wanted, capacity, least)
    assert sum(found.values()) == total
    assert all(least[name] <= found[name] <= capacity[name] for name in found)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9))
def test_what_fits_is_left_alone(amounts):
    wanted = {str(i): float(amount) for i, amount in enumerate(amounts)}
    assert share_out(sum(amounts), wanted, dict.fromkeys(wanted, 1000)) == wanted


def test_overflow_goes_where_there_is_room():
    found = share_out(100, {"a": 80.0, "b": 10.0, "c": 10.0}, {"a": 40, "b": 30, "c": 50})
    # 40 overflow; b has room for 20, c for 40
    assert found == {"a": 40, "b": 23, "c": 37}


def test_remainders_go_to_the_largest_and_ties_to_the_first():
    assert share_out(10, {"a": 3.3, "b": 3.4, "c": 3.3}, dict.fromkeys("abc", 9)) == {"a": 3, "b": 4, "c": 3}
    assert share_out(2, {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, dict.fromkeys("abcd", 9)) == {
        "a": 1, "b": 1, "c": 0, "d": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("floor", "size", "kept"), [(0.001, 1000, 1), (0.001, 1001, 2), (0.5, 7, 4), (0, 5, 0)]
)
def test_the_floor_is_rounded_up_to_whole_weights(floor, size, kept):
    assert size - PerLayer(floor=floor).capacity(size) == kept


SHAPES = st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple), min_size=1, max_size=5)


def layers(shapes, seed=0, levels=None):
    rng = np.random.default_rng(seed)
    draw = (lambda s: rng.integers(0, levels, s)) if levels else (lambda s: rng.standard_normal(s))
    return {str(i): torch.from_numpy(np.abs(draw(s)).astype(np.float32)) for i, s in enumerate(shapes)}


class TestGlobal:
    @given(SHAPES, st.floats(0, 1), st.integers(1, 4), st.integers(0, 99))
    def test_exactly_as_many_whatever_the_ties(self, shapes, sparsity, levels, seed):
        scores = layers(shapes, seed, levels)
        total = sum(s.numel() for s in scores.values())
        found = Global(floor=0).amounts(context_of(scores, sparsity))
        assert sum(found.values()) == round(sparsity * total)

    @given(SHAPES, st.floats(0, 1), st.integers(0, 99))
    def test_layers_agree_with_one_threshold(self, shapes, sparsity, seed):
        scores = layers(shapes, seed)
        everything = np.sort(np.concatenate([s.numpy().reshape(-1) for s in scores.values()]))
        count = round(sparsity * everything.size)
        found = Global(floor=0).amounts(context_of(scores, sparsity))
        assert sum(found.values()) == count
        if count:
            threshold = everything[count - 1]  # which several may have: of those, any may stay
            assert all((s.numpy() < threshold).sum() <= found[name] for name, s in scores.items())
            assert all(found[name] <= (s.numpy() <= threshold).sum() for name, s in scores.items())

    def test_a_threshold_that_two_layers_share(self):
        scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([2.0, 3.0])}
        found = Global(floor=0).amounts(context_of(scores, 0.5))
        assert sum(found.values()) == 2
        assert found["a"] >= 1

    @given(SHAPES, st.floats(0, 1), st.floats(0.01, 0.6), st.integers(0, 99))
    def test_the_floor_holds_and_the_count_is_exact(self, shapes, share, floor, seed):
        scores = layers(shapes, seed, levels=3)
        allocation = Global(floor=floor)
        reachable = sum(allocation.capacity(s.numel()) for s in scores.values())
        total = sum(s.numel() for s in scores.values())
        found = allocation.amounts(context_of(scores, share * reachable / total))
        assert sum(found.values()) == round(share * reachable / total * total)
        assert all(s.numel() - found[name] >= floor * s.numel() - 1e-6 for name, s in scores.items())

    def test_infinite_scores_are_not_the_floor(self):
        scores = {"a": torch.full((10, 10), float("inf")), "b": torch.full((10, 10), float("inf"))}
        found = Global(floor=0.3).amounts(context_of(scores, 0.7))
        assert found == {"a": 70, "b": 70}

    def test_what_is_gone_counts(self):
        scores = layers([(4, 4), (4, 4)])
        masks = Masks({"0": ~lowest(scores["0"], 6), "1": torch.ones(4, 4, dtype=torch.bool)})
        found = Global().amounts(context_of(scores, 0.5, masks=masks))
        assert sum(found.values()) == 16
        assert found["0"] >= 6


class TestPerLayer:
    @given(SHAPES, st.floats(0, 1))
    def test_the_same_fraction_everywhere(self, shapes, sparsity):
        scores = layers(shapes)
        found = PerLayer().amounts(context_of(scores, sparsity))
        assert found == {name: round(sparsity * s.numel()) for name, s in scores.items()}

    def test_the_output_layer_at_half_the_rate(self):
        model = mlp(40, 50, 60, seed=0)
        chosen = recipe(
            allocation={"name": "per_layer", "output_rate": 0.5},
            schedule={"name": "geometric", "rate": 0.2, "steps": 8},
        )
        from prunekit.pruning import prune

        history = prune(model, chosen).history
        for k, record in enumerate(history, 1):
            assert record.layers["0.weight"] == pytest.approx(2000 * 0.8**k, abs=1)
            assert record.layers["2.weight"] == pytest.approx(3000 * 0.9**k, abs=5)

    def test_the_floor_is_refused_per_layer(self):
        with pytest.raises(
            InputError, match=r"sparsity 0\.95 leaves '2\.weight' fewer than the floor of 0\.001"
        ):
            recipe(allocation="per_layer", schedule={"name": "one_shot", "sparsity": 0.95}).plan(
                mlp(99, 3, 3)
            )


def erk_by_bisection(shapes, keep):
    raw = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    sizes = np.array([np.prod(shape) for shape in shapes])

    def excess(log_scale):
        return (np.minimum(np.exp(log_scale) * raw, 1) * sizes).sum() - keep

    return np.minimum(np.exp(brentq(excess, -60, 60, xtol=1e-14, rtol=1e-14)) * raw, 1)


class TestERK:
    @given(SHAPES, st.floats(0.02, 0.98))
    def test_densities_are_those_of_a_bisection(self, shapes, sparsity):
        sizes = [int(np.prod(shape)) for shape in shapes]
        total = round(sparsity * sum(sizes))
        if not 0 < total < sum(sizes):
            return
        found = ERK(floor=0).amounts(context_of(layers(shapes), sparsity))
        expected = (1 - erk_by_bisection(shapes, sum(sizes) - total)) * sizes
        assert sum(found.values()) == total
        assert np.allclose(list(found.values()), expected, atol=1.001)

    def test_the_narrow_layer_stays_denser(self):
        found = ERK().amounts(context_of(layers([(100, 100), (10, 100), (3, 3)]), 0.8))
        assert found["0"] / 10000 > found["1"] / 1000 > found["2"] / 9 == 0

    @given(SHAPES, st.lists(st.floats(0.05, 0.95), min_size=2, max_size=6, unique=True))
    def test_no_layer_gets_back_what_it_lost(self, shapes, sparsities):
        scores = layers(shapes)
        masks = Masks({name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()})
        total = masks.total
        for sparsity in sorted(sparsities):
            if round(sparsity * total) < total - masks.kept:
                continue
            found = ERK(floor=0).amounts(context_of(scores, sparsity, masks=masks))
            assert sum(found.values()) == round(sparsity * total)
            assert all(found[name] >= int((~mask).sum()) for name, mask in masks.items())
            masks = Masks({name: ~lowest(scores[name], found[name]) for name in scores})


class TestThreshold:
    @given(SHAPES, st.floats(0.1, 2.0), st.integers(0, 99))
    def test_what_is_below_q_deviations_goes(self, shapes, q, seed):
        rng = np.random.default_rng(seed)
        weights = {str(i): rng.standard_normal(s) for i, s in enumerate(shapes)}
        scores = {name: torch.from_numpy(np.abs(w)) for name, w in weights.items()}
        given_ = context_of(scores, None)
        given_.weights.update({name: torch.from_numpy(w) for name, w in weights.items()})
        found = Threshold(q=q, floor=0).amounts(given_)
        assert found == {name: int((np.abs(w) < q * np.std(w)).sum()) for name, w in weights.items()}

    def test_the_deviation_is_that_of_the_survivors(self):
        weights = torch.from_numpy(np.random.default_rng(0).standard_normal((30, 30)))
        masks = Masks({"a": weights.abs() > 0.5})
        found = Threshold(q=1.0).amounts(context_of({"a": weights.abs()}, None, masks=masks))
        survivors = weights.abs().numpy()[masks["a"].numpy()]
        gone = int((~masks["a"]).sum())
        assert found["a"] == gone + int((survivors < survivors.std()).sum())

    def test_the_floor_stops_it(self):
        found = Threshold(q=100.0, floor=0.25).amounts(context_of(layers([(4, 4)]), None))
        assert found == {"0": 12}

    def test_an_empty_layer_stays_empty(self):
        masks = Masks({"0": torch.zeros(4, 4, dtype=torch.bool)})
        found = Threshold(q=1.0, floor=0).amounts(context_of(layers([(4, 4)]), None, masks=masks))
        assert found["0"] == 16


class TestGiven:
    def test_names_globs_and_expressions(self):
        scores = {
            "fc1.weight": torch.rand(10, 10),
            "fc2.weight": torch.rand(10, 10),
            "out": torch.rand(10, 10),
        }
        allocation = Manual(sparsities={"fc1": 0.9, "re:fc[2-9]": 0.5})
        assert allocation.amounts(context_of(scores, None)) == {"fc1.weight": 90, "fc2.weight": 50, "out": 0}
        halfway = allocation.amounts(context_of(scores, None, round_=1, rounds=2))
        assert halfway == {"fc1.weight": 45, "fc2.weight": 25, "out": 0}

    def test_a_cubic_ramp_is_the_cubic_schedule_of_each_layer(self):
        scores = {"a": torch.rand(1000), "b": torch.rand(500)}
        allocation = Manual(sparsities={"a": 0.8, "b": 0.5}, ramp="cubic")
        shares = (Cubic(sparsity=each, steps=7).sparsities() for each in (0.8, 0.5))
        for number, (a, b) in enumerate(zip(*shares, strict=True), 1):
            found = allocation.amounts(context_of(scores, None, round_=number, rounds=7))
            assert found == {"a": round(1000 * a), "b": round(500 * b)}

    @pytest.mark.parametrize(
        ("sparsities", "message"),
        [
            ({"fc9": 0.5}, "sparsities: 'fc9' matches no pruned layer; layers are: 0, 2"),
            ({"0": 0.5, "1": 0.5}, "'1' matches no pruned layer"),
            ({"0": 0.999}, r"sparsity 0\.999 leaves '0\.weight' fewer than the floor"),
        ],
    )
    def test_refusals(self, sparsities, message):
        chosen = recipe(
            allocation={"name": "manual", "sparsities": sparsities}, schedule="allocation_decides"
        )
        with pytest.raises(InputError, match=message):
            chosen.plan(mlp(4, 4, 4))

    @pytest.mark.parametrize(("value", "message"), [({}, "at least 1"), ({"0": 40}, "40 is no sparsity")])
    def test_what_is_no_dictionary_of_sparsities(self, value, message):
        with pytest.raises(InputError, match=message):
            Manual(sparsities=value)


def test_nothing_removes_nothing():
    assert NoPruning().amounts(context_of(layers([(3, 3), (2, 2)]), None)) == {"0": 0, "1": 0}


def test_given_refuses_two_sparsities_for_one_layer():
    """Equal dictionaries have equal hashes in any order, so that no key can be the first."""
    for order in ({"0": 0.5, "*": 0.25}, {"*": 0.25, "0": 0.5}):
        chosen = recipe(allocation={"name": "manual", "sparsities": order}, schedule="allocation_decides")
        first, second = order
        message = f"'{first}' and '{second}' both match 0, with {order[first]:g} and {order[second]:g}"
        with pytest.raises(InputError, match=re.escape(message)):
            chosen.plan(mlp(4, 8, 2))
    same = {"name": "manual", "sparsities": {"0": 0.5, "0.weight": 0.5}}
    recipe(allocation=same, schedule="allocation_decides").plan(mlp(4, 8, 2))


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


def test_a_threshold_below_zero_is_refused():
    with pytest.raises(InputError, match="tau"):
        BelowMean(tau=-1)


def test_a_sparsity_that_nobody_asked_for():
    with pytest.raises(InputError, match="use the schedule 'allocation_decides'"):
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
        {"score": "n2ps", "granularity": {"name": "unit", "inputs": True}, "allocation": "below_mean",
         "schedule": "allocation_decides"}
    )  # fmt: skip
    pruned = prune(model, chosen, (inputs, targets))
    assert [flags.tolist() for flags in pruned.kept.values()] == list(wanted.values())


def test_apoz_goes_layer_by_layer():
    chosen = method("apoz", rounds=2)
    steps = chosen.plan(net(6, 7, 5, 4)).steps
    assert [step.layers for step in steps] == [("0",), ("2",), ("0",), ("2",)]
