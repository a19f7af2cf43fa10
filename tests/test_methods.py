import inspect

import pytest
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.methods import METHODS, describe, filter_norm, iterative_magnitude, magnitude, recipe
from prunekit.models import Maxout
from prunekit.pruning import prune
from prunekit.recipe import Recipe
from residual_nets import Residual
from small_nets import blobs, copied, mlp

SHORT = {"epochs": 0.5, "rounds": 2, "cycles": 2, "steps": 2}


def short(name: str) -> Recipe:
    allowed = inspect.signature(METHODS[name]).parameters
    return recipe(name, **{key: value for key, value in SHORT.items() if key in allowed})


def fitting(name: str) -> nn.Sequential:
    """A small network that has what the method looks at."""
    model = mlp(12, 16, 8, 4)
    if name == "network_slimming":
        for place in (3, 1):
            model.insert(place, nn.BatchNorm1d(model[place - 1].out_features))
    if name == "maxout_pruning":
        return nn.Sequential(Maxout(nn.Linear(12, 16), 4), nn.Linear(4, 4))
    if name in ("ssl_filters", "ssl_filter_shapes", "brain_damage"):
        images = nn.Linear(12, 16), nn.Unflatten(1, (1, 4, 4))
        return nn.Sequential(*images, nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
    if name in ("ssl_depth", "shortgpt"):
        return nn.Sequential(nn.Linear(12, 8), *(Residual(8, 6) for _ in range(4)), nn.Linear(8, 4))
    return model


@pytest.mark.parametrize("name", METHODS)
def test_every_method_prunes_what_it_says(name):
    model = fitting(name)
    chosen = short(name)
    steps = len(chosen.plan(model).steps)
    initial = {0: copied(model)}
    pruned = prune(model, chosen, blobs(64, 12, 4), checkpoints=initial, seed=1)
    stated = chosen.schedule.sparsities()[-1]
    if stated is not None and name not in ("lottery_ticket", "random_ticket", "reinitialized_magnitude"):
        removed, wanted = pruned.kept.total - pruned.kept.kept, stated * pruned.kept.total
        if name == "smallest":  # and what is rounded to zero, or belongs to dead units
            assert removed >= wanted - 2
        else:
            assert removed == pytest.approx(wanted, abs=2)
    assert len(pruned.history) == steps
    for parameter, mask in pruned.masks.parameters(model):
        assert bool((parameter[~mask] == 0).all())
        assert bool(torch.isfinite(parameter).all())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_described(name):
    info = describe(name)
    assert info.name == name
    assert info.summary.endswith(".")
    assert "\n" not in info.summary
    assert bool(info.paper) == (name not in ("random", "unpruned", "random_units"))
    chosen = recipe(name)
    assert ("data" in info.needs) == chosen.needs_data
    assert Recipe.from_yaml(chosen.to_yaml()) == chosen
    assert info.settings == {key: p.default for key, p in inspect.signature(METHODS[name]).parameters.items()}


def test_needs_are_named():
    assert describe("magnitude").needs == ()
    assert describe("snip").needs == ("data",)
    assert describe("lottery_ticket").needs == ("retraining", "initial values")
    assert describe("sensitivity_magnitude").needs == ("data",)


def test_methods_for_units_say_so():
    names = ["oracle_units", "taylor_units", "skeletonization", "n2ps_units", "apoz_units", "filter_norm"]
    assert {describe(name).granularity for name in [*names, "random_units"]} == {"unit"}
    assert describe("oracle_units").needs == ("data",)
    assert describe("skeletonization").needs == ("data", "retraining")
    assert describe("filter_norm").needs == ("retraining",)
    assert describe("random_units").needs == ()
    assert recipe("taylor_units", order=1, error="cross_entropy").score.to_dict() == {
        "name": "unit_taylor", "order": 1, "form": "exact", "error": "cross_entropy",
    }  # fmt: skip


def test_settings_reach_the_recipe():
    assert recipe("magnitude", sparsity=0.3).schedule.sparsities() == (0.3,)
    assert recipe("n_m", n=1, m=4).schedule.sparsities() == (0.75,)
    assert recipe("lottery_ticket", rounds=3, step=7).retrain.checkpoint == 7
    linear = recipe("lottery_ticket_linear").schedule.sparsities()
    assert linear == pytest.approx([0.09 * k for k in range(1, 11)])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "magnitud",
            {},
            "'magnitud'; did you mean 'magnitude' or 'erk_.*'. `prunekit methods` lists",
        ),
        (
            "magnitude",
            {"sparsty": 0.5},
            "method magnitude: unknown key 'sparsty'; .* allowed keys are: sparsity",
        ),
        ("magnitude", {"sparsity": 40}, "40 is no sparsity.*write 0.4"),
        ("magnitude", {"sparsity": 1.0}, "1 is no sparsity"),
        ("n_m", {"n": 4, "m": 4}, "n must be below m"),
        ("iterative_magnitude", {"steps": 0}, "steps = 0"),
        ("lottery_ticket", {"step": -1}, "step = -1"),
    ],
)
def test_refusals(name, settings, message):
    with pytest.raises(InputError, match=message):
        recipe(name, **settings)


def test_settings_of_another_kind_are_refused():
    with pytest.raises(InputError, match=r"method n_m: n = 'x': n:m: n = 'x': .* valid integer"):
        recipe("n_m", n="x")


def test_a_setting_that_is_called_name_is_an_unknown_one():
    with pytest.raises(InputError, match="unknown key 'name'"):
        recipe("magnitude", **{"name": "snip"})


def test_a_setting_that_a_method_does_not_have_is_answered_with_those_that_it_has():
    with pytest.raises(TypeError, match=r"'epoch'; its settings are sparsity, epochs, training$"):
        filter_norm(0.5, epoch=3)


def test_a_recipe_in_the_place_of_the_network_is_told_in_a_line():
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(50)))
    with pytest.raises(InputError, match="must be a Recipe, not Sequential") as error:
        prune(magnitude(0.5), network)
    assert len(str(error.value)) < 400


def test_a_method_that_retrains_says_what_needs_no_data():
    with pytest.raises(
        InputError, match="needs data, but none is given; epochs = 0 or the retrain 'none' needs none"
    ):
        prune(nn.Linear(4, 4), iterative_magnitude(0.5))


@pytest.mark.parametrize("training", [{"epochs": 0}, {"iterations": 0}])
def test_a_retraining_of_no_steps_needs_no_data(training):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    data = torch.randn(20, 4), torch.randint(3, (20,))
    chosen = filter_norm(0.5, training=training)
    without, with_data = prune(network(), chosen), prune(network(), chosen, data)
    assert without.kept.sparsity == with_data.kept.sparsity == 0.5
    for one, other in zip(without.model.parameters(), with_data.model.parameters(), strict=True):
        assert torch.equal(one, other)
