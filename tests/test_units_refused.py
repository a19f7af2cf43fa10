"""What is refused of recipes over units, before anything is changed."""

import pytest
import torch
from torch import nn

from prunekit.errors import InputError, ModelError, PrunekitError
from prunekit.parts.scores import Score
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from small_nets import copied, mlp, same
from unit_recipes import data, net, units


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(6, 8)
        self.block = nn.Linear(8, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.into(x))
        return self.out(x + torch.relu(self.block(x)))


@pytest.mark.parametrize("score", ["random", "oracle"])
def test_a_residual_sum(score):
    model = Residual().double()
    before = copied(model)
    with pytest.raises(ModelError, match=r"into .*: the residual stream stays unless it is asked for"):
        prune(model, units(score), data(6))
    assert same(before, copied(model))


OF_UNITS = sorted(
    name
    for name, score in Score.own_members().items()
    if "units" in score.works_on and ("weights" not in score.works_on or name == "random")
)


@pytest.mark.parametrize("score", OF_UNITS)
def test_input_features_are_scored_by_what_scores_units(score):
    Recipe.parse(
        {
            "score": score,
            "granularity": {"name": "unit", "inputs": True},
            "allocation": {"name": "manual", "sparsities": {"input": 0.5}},
            "schedule": "allocation_decides",
        }
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"score": "oracle", "granularity": "weight"},
            "the score 'oracle' works on whole units.*, the granularity 'weight' .*: use the granu.* 'unit'",
        ),
        ({"score": "n2ps"}, "the score 'n2ps' works on whole units, .*: use the granularity 'unit'"),
        (
            {
                "granularity": "unit",
                "allocation": {"name": "threshold", "q": 1.0},
                "schedule": "allocation_decides",
            },
            "the allocation 'threshold' works on single weights .* 'unit' .*: use the granularity 'weight'",
        ),
        (
            {"granularity": {"name": "unit", "inputs": True}, "score": "magnitude"},
            "input features have no incoming weights for the score 'magnitude'.*'outgoing_norm'",
        ),
        ({"granularity": {"name": "unit", "pool": "median"}}, "pool"),
        ({"granularity": "unit", "score": {"name": "oracle", "error": "hinge"}}, "error"),
        ({"granularity": "unit", "score": {"name": "skeletonization", "batch_size": 0}}, "batch_size"),
        ({"rank": "twice"}, "rank"),
        ({"retrain_every": 0}, "retrain_every"),
    ],
)
def test_recipes_that_do_not_fit(values, message):
    with pytest.raises(InputError, match=message):
        Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}, **values})


@pytest.mark.parametrize("score", ["oracle", "unit_taylor", "skeletonization", "n2ps", "activation"])
def test_a_score_that_needs_data(score):
    with pytest.raises(InputError, match=f"score '{score}' needs data, but no data is given"):
        prune(net(6, 7, 4), units(score))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0.95}, "removes 12 of 13 units, but the floor of 0.001 per layer allows 11"),
        ({"targets": ["4"]}, r"chooses no group that can be pruned: 4 \(neurons\): is the network's output"),
        ({"targets": ["nothing"]}, "nothing"),
        (
            {"score": "magnitude", "granularity": {"name": "unit", "inputs": True}},
            "input features have no incoming",
        ),
    ],
)
def test_what_the_model_cannot_do(settings, message):
    model = net(6, 7, 6, 4)
    before = copied(model)
    with pytest.raises(PrunekitError, match=message):
        prune(model, units(**{"score": "random", **settings}), data(6))
    assert same(before, copied(model))


@pytest.mark.parametrize("score", ["oracle", "unit_taylor", "skeletonization"])
@pytest.mark.parametrize("shape", [(24, 3), (24,), (24, 4, 1)])
def test_regression_targets_of_another_shape(score, shape):
    model = net(6, 7, 4)
    before = copied(model)
    with pytest.raises(PrunekitError, match="shape"):
        prune(model, units(score), (data(6)[0], torch.rand(shape, dtype=torch.float64)))
    assert same(before, copied(model))


def test_single_weights_are_not_taken_out():
    pruned = prune(mlp(10, 16, 3), units(granularity="weight", sparsity=0.1))
    with pytest.raises(InputError, match="single weights were removed, not units"):
        pruned.shrink(torch.rand(3, 10))


def test_an_empty_layer_is_not_taken_out():
    recipe = units(sparsity=6 / 7, targets=["0"], allocation={"name": "global", "floor": 0})
    model = net(6, 7, 6, 4)
    with torch.no_grad():
        model[0].weight.zero_()
    pruned = prune(model, units(sparsity=8 / 13, allocation={"name": "global", "floor": 0}))
    assert pruned.history[-1].layers["0"] == 0
    with pytest.raises(InputError, match="0"):
        pruned.shrink(data(6)[0])
    assert prune(net(6, 7, 6, 4), recipe).history[-1].kept == 1


def test_the_state_of_another_recipe():
    examples = data(6)
    once, anew = (
        Session(net(6, 7, 4), units("oracle", rank=r), data=examples) for r in ("once", "every_step")
    )
    with pytest.raises(InputError, match="another recipe"):
        anew.load_state_dict(once.state_dict())


def test_only_grouped_convolutions():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))
    pruned = prune(model, units("random"), example_inputs=torch.randn(2, 4, 6, 6))
    assert {name: len(flags) for name, flags in pruned.kept.items()} == {"0": 4}
