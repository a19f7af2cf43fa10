"""Scores whose values can be compared across layers, and what follows: defaults, refusals, warnings."""

import copy
import warnings
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit import Recipe, prune
from prunekit.errors import InputError, StarvedLayerWarning, starved
from prunekit.methods import METHODS, apoz_units
from prunekit.methods import recipe as named
from prunekit.parts.allocation import Global, PerLayer
from prunekit.parts.context import Score, Scores, StepContext
from prunekit.parts.scores import Magnitude
from small_nets import blobs, mlp, recipe, zeros


class Mine(Score):
    """Says nothing of whether it can be compared."""

    name = "mine_of_comparable"

    def __call__(self, context: StepContext) -> Scores:
        """|w|."""
        return {name: weight.abs() for name, weight in context.weights.items()}


RANKS = [
    ("wanda", "weight"),
    ({"name": "activation", "what": "mean"}, "unit"),
    ({"name": "feature_taylor", "normalize": False}, "unit"),
    ("layer_obs", "unit"),
    ("movement", "unit"),
    ("magnitude", "unit"),
    ("ria", "unit"),
    ("thinet", "unit"),
    ("geometric_median", "unit"),
    ("outgoing_norm", "unit"),
    ("grad_cam", "unit"),
    ({"name": "activation", "what": "variance"}, "unit"),
]


class TestDefault:
    @pytest.mark.parametrize(("score", "granularity"), RANKS)
    def test_what_cannot_be_compared_loses_the_same_fraction(self, score, granularity):
        assert recipe(score=score, granularity=granularity).allocation == PerLayer()

    @pytest.mark.parametrize(
        ("score", "granularity"),
        [
            ("random", "weight"),
            ("random", "unit"),
            ("magnitude", "weight"),
            ({"name": "wanda", "within": "layer"}, "weight"),
            ({"name": "grad_cam", "normalize": True}, "unit"),
            ("feature_taylor", "unit"),
            ("layer_obs", "weight"),
            ("obd", "unit"),
        ],
    )
    def test_what_can_be_compared_is(self, score, granularity):
        assert recipe(score=score, granularity=granularity).allocation == Global()

    def test_an_even_granularity_takes_the_same_of_every_layer(self):
        pruned = prune(mlp(8, 12, 4), recipe(granularity="n:m"))
        assert pruned.recipe.allocation == PerLayer()
        assert {float(mask.float().mean()) for mask in pruned.masks.values()} == {0.5}

    def test_a_score_that_says_nothing_is_not_compared(self):
        assert recipe(score=Mine()).allocation == PerLayer()
        with pytest.raises(InputError, match="or say in the score's class that it is `comparable`"):
            recipe(score=Mine(), allocation="global")

    def test_a_default_is_part_of_the_recipe_as_if_it_was_written(self):
        written = recipe(score="wanda", allocation="per_layer")
        assert recipe(score="wanda") == written
        assert recipe(score="wanda").digest() == written.digest()
        assert Recipe.from_yaml(recipe(score="wanda").to_yaml()) == written
        assert recipe(score="magnitude").digest() == recipe(score="magnitude", allocation="global").digest()

    def test_every_score_of_the_package_says_it(self):
        for name, score in Score.own_members().items():
            owners = [each for each in score.__mro__ if "comparable" in vars(each)]
            assert owners[0] is not Score, name


class TestRefusal:
    @pytest.mark.parametrize(("score", "granularity"), RANKS)
    def test_it_names_score_allocation_and_those_that_do(self, score, granularity):
        if (score, granularity) == ("magnitude", "unit"):
            return  # published so, and taken where it is named
        name = score["name"] if isinstance(score, Mapping) else score
        with pytest.raises(InputError) as caught:
            recipe(score=score, granularity=granularity, allocation="global")
        message = str(caught.value)
        assert "\n" not in message
        assert f"'{name}'" in message
        for allocation in ("global", "erk", "owl", "per_layer", "sensitivity"):
            assert f"'{allocation}'" in message

    @pytest.mark.parametrize(
        ("score", "granularity"),
        [
            ("magnitude", "unit"),
            ("activation", "unit"),
            ({"name": "activation", "what": "irreplaceable"}, "unit"),
            ({"name": "layer_obs", "relative_to": "nothing"}, "weight"),
        ],
    )
    def test_what_was_published_so_is_taken_where_it_is_named(self, score, granularity):
        assert recipe(score=score, granularity=granularity).allocation == PerLayer()
        assert recipe(score=score, granularity=granularity, allocation="global").allocation == Global()

    def test_the_recipe_of_a_method_names_the_ranking_that_it_had_by_default(self):
        assert apoz_units().allocation == Global()

    def test_ranks_within_rows_tell_no_unit_from_another(self):
        with pytest.raises(InputError, match=r"all units of a layer tie: set its `within` to 'layer'"):
            recipe(score="wanda", granularity="unit")
        assert recipe(score={"name": "wanda", "within": "layer"}, granularity="unit")

    def test_what_it_names_is_taken(self):
        for allocation in ("erk", "owl", "per_layer", "sensitivity"):
            assert recipe(score="wanda", allocation=allocation).allocation.name == allocation

    def test_a_budget_shared_by_one_ranking(self):
        with pytest.raises(InputError, match="or its share 'per_layer'"):
            recipe(score="geometric_median", granularity="unit", allocation="budget")
        recipe(
            score="geometric_median", granularity="unit", allocation={"name": "budget", "share": "per_layer"}
        )

    def test_a_threshold_of_deviations_takes_magnitudes_only(self):
        threshold = {"allocation": {"name": "threshold", "q": 0.5}, "schedule": "allocation_decides"}
        Recipe.parse(threshold)
        for score in ("random", "lamp", {"name": "magnitude", "relative_to": "layer_norm"}):
            with pytest.raises(InputError, match=r"'threshold'.*'below_mean'"):
                Recipe.parse({"score": score, **threshold})

    @pytest.mark.parametrize("name", METHODS)
    def test_every_named_method_is_taken(self, name):
        chosen = named(name)
        assert Recipe.parse(chosen.to_dict()).digest() == chosen.digest()


class TestEqualLayers:
    @settings(max_examples=30)
    @given(
        score=st.sampled_from(
            ["random", "magnitude", "lamp", "input_deviation", "wanda", "ria", "obd", "weight_gradient"]
        ),
        layers=st.integers(1, 3),
        width=st.sampled_from([8, 12]),
        seed=st.integers(0, 10**6),
    )
    def test_no_layer_is_emptied_at_half(self, score, layers, width, seed):
        """Of fresh layers of one size by defaults: each keeps a tenth at least."""
        model = mlp(*[width] * (layers + 1), seed=seed)
        data = blobs(inputs=width, classes=width, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error", StarvedLayerWarning)
            pruned = prune(model, recipe(score=score), data, seed=seed)
        assert pruned.masks.sparsity == pytest.approx(0.5, abs=0.01)
        assert min(float(mask.float().mean()) for mask in pruned.masks.values()) >= 0.1


class TestStarved:
    def test_the_criterion_by_hand(self):
        # under 1 %, while half of the network is left
        assert starved((100, 1000), 999, 0.5)
        assert not starved((100, 1000), 1001, 0.5)
        # under one weight an output
        assert starved((10, 20), 9, 0.5)
        assert not starved((10, 20), 10, 0.5)
        # one unit of 50; 1 of 15 is no tenth of a half
        assert starved((50,), 1, 0.5)
        assert not starved((50,), 2, 0.5)
        assert not starved((15,), 1, 0.5)
        # everything is small
        assert not starved((100, 1000), 999, 0.05)

    @staticmethod
    def _uneven() -> nn.Module:
        model = mlp(40, 30, 30, 3)
        with torch.no_grad():
            model[2].weight.mul_(1e-4)
        return model

    def test_prune_warns_and_names_layer_and_way_out(self):
        with pytest.warns(StarvedLayerWarning) as caught:
            pruned = prune(self._uneven(), recipe())
        text = str(caught[0].message)
        assert len(caught) == 1
        assert "1 of 900 weights of 2.weight are left" in text
        assert "per_layer" in text
        assert "ignore" in text
        assert pruned.starved == (text,)
        assert caught[0].filename == __file__

    def test_it_does_not_warn_without_reason(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error", StarvedLayerWarning)
            assert prune(self._uneven(), recipe(allocation="per_layer")).starved == ()


class TestZeros:
    """What begins at zero has not been removed."""

    @staticmethod
    def _with_zero_layer() -> nn.Module:
        model = mlp(10, 12, 12, 3)
        nn.init.zeros_(model[2].weight)
        return model

    @pytest.mark.parametrize("score", ["random", "gradient"])
    def test_a_layer_of_zeros_is_ranked_by_its_score(self, score):
        model = self._with_zero_layer()
        model[4].weight.data.mul_(3)
        before = copy.deepcopy(model)
        pruned = prune(model, recipe(score=score, allocation="per_layer"), blobs())
        kept = pruned.masks["2.weight"]
        assert int(kept.sum()) == 72
        if score == "gradient":  # of the loss on the same examples, by autograd alone
            inputs, targets = blobs()
            nn.functional.cross_entropy(before(inputs), targets).backward()
            slope = before[2].weight.grad.abs()
            assert float(slope[kept].min()) >= float(slope[~kept].max()) > 0

    def test_random_removal_takes_its_share_of_it(self):
        pruned = prune(self._with_zero_layer(), recipe(score="random"), seed=1)
        assert 0.35 < float(pruned.masks["2.weight"].float().mean()) < 0.65

    def test_by_magnitude_they_go_first(self):
        with pytest.warns(StarvedLayerWarning, match=r"2\.weight"):
            pruned = prune(self._with_zero_layer(), recipe(score=Magnitude()))
        assert int(pruned.masks["2.weight"].sum()) == 1  # its floor

    def test_a_head_of_zeros_leaves_the_choice_of_units_to_the_score(self):
        model = mlp(10, 12, 12, 3)
        nn.init.zeros_(model[4].weight)
        pruned = prune(model, recipe(granularity="unit"), blobs())
        norms = model_norms(mlp(10, 12, 12, 3)[2].weight)
        kept = pruned.kept["2"]
        assert int(kept.sum()) == 6
        assert float(norms[kept].min()) >= float(norms[~kept].max())

    @pytest.mark.parametrize("score", ["random", "gradient", "magnitude"])
    def test_zeros_between_other_weights_are_removed_ones(self, score):
        model = mlp(10, 12, 12, 3)
        chosen = recipe(score=score, allocation="per_layer")
        prune(model, chosen, blobs(), seed=1)
        counts = [zeros(model, name) for name in ("0.weight", "2.weight", "4.weight")]
        prune(model, chosen, blobs(), seed=2)
        assert [zeros(model, name) for name in ("0.weight", "2.weight", "4.weight")] == counts


def model_norms(weight: torch.Tensor) -> torch.Tensor:
    """The L1 norm of each row."""
    return weight.detach().abs().sum(1)
