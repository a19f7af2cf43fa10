"""Random controls at a method's own densities: as many of each layer after each round, and others of them."""

import copy

import pytest
import torch
from torch import nn

from prunekit import Recipe, methods, prune
from prunekit.errors import InputError
from prunekit.parts.allocation import Recorded
from prunekit.study import run_study
from small_nets import blobs, mlp, recipe
from tiny_study import one_shot, table, tickets, tiny

SHORT = {"name": "fine_tune", "training": {"iterations": 3}}
RECIPES = {
    "one ranking of all layers, in rounds": recipe(
        schedule={"name": "geometric", "sparsity": 0.9, "steps": 4}, retrain=SHORT
    ),
    "layer by layer, with an update": methods.sparsegpt(0.6),
    "a pattern": methods.n_m(2, 4),
    "units": methods.filter_norm(0.5, training={"iterations": 2}),
    "units, layer by layer, in rounds": recipe(
        granularity="unit",
        order="forward",
        schedule={"name": "linear", "sparsity": 0.6, "steps": 2},
        retrain=SHORT,
        retrain_every=2,
    ),
    "as the allocation decides": methods.threshold_magnitude(q=0.7, rounds=2, training={"iterations": 2}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_takes_as_many_of_each_layer_after_each_round(name: str) -> None:
    chosen = RECIPES[name]
    model, data = mlp(12, 16, 8, 4), blobs(64, 12, 4)
    method = prune(copy.deepcopy(model), chosen, data, seed=1)
    control = prune(copy.deepcopy(model), method.random_control(), data, seed=1)
    assert [record.layers for record in control.history] == [record.layers for record in method.history]
    assert any(not torch.equal(mask, method.kept[each]) for each, mask in control.kept.items())
    other = prune(copy.deepcopy(model), method.random_control(), data, seed=2)
    assert any(not torch.equal(mask, other.kept[each]) for each, mask in control.kept.items())
    for key in ("granularity", "order", "repair", "retrain", "retrain_every", "calibration"):
        assert getattr(control.recipe, key) == getattr(chosen, key)
    assert Recipe.from_yaml(control.recipe.to_yaml()) == control.recipe


def test_what_a_penalty_has_chosen_is_trained_without_it_and_then_drawn() -> None:
    lasso = {"name": "group_lasso", "strength": 1.0, "targets": ["0", "2"]}
    training = {"iterations": 60, "batch_size": 64, "optimizer": "sgd", "lr": 0.05, "regularize": [lasso]}
    chosen = recipe(
        granularity="unit",
        allocation="zeros",
        warm_up=training,
        schedule={"name": "allocation_decides"},
        retrain=SHORT,
    )
    model, data = mlp(12, 16, 8, 4), blobs(64, 12, 4)
    method = prune(copy.deepcopy(model), chosen, data, seed=1)
    control = prune(copy.deepcopy(model), method.random_control(), data, seed=1)
    assert 0 < method.history[-1].kept < method.history[-1].total
    assert control.history[-1].layers == method.history[-1].layers
    # nothing has shrunk what stays, as it has in the method
    assert control.recipe.warm_up == chosen.warm_up.model_copy(update={"regularize": ()})
    alone = prune(copy.deepcopy(model), chosen.model_copy(update={"warm_up": control.recipe.warm_up}), data)
    assert alone.history[-1].kept == alone.history[-1].total
    assert any(not torch.equal(mask, method.kept[each]) for each, mask in control.kept.items())


LINEAR = {"name": "linear", "sparsity": 0.9, "steps": 6}


@pytest.mark.parametrize(
    ("rolls_back", "limit", "steps"), [(True, 0.0, 0), (True, 0.02, 5), (False, 0.0, 1), (False, 0.05, 7)]
)
def test_what_a_stop_has_ended_within_a_round_counts_as_well(
    rolls_back: bool, limit: float, steps: int
) -> None:
    """Layer by layer, a stop may come after the first layer of a round, or before anything is gone."""
    stop = {"name": "error_limit", "of": "loss", "increase": limit, "roll_back": rolls_back}
    model, (inputs, _) = mlp(12, 16, 8, 4), blobs(64, 12, 4)
    data = inputs, model(inputs).argmax(1)
    chosen = recipe(granularity="unit", order="forward", allocation="per_layer", schedule=LINEAR, stop=stop)
    method = prune(copy.deepcopy(model), chosen, data)
    assert len(method.history) == steps
    control = prune(copy.deepcopy(model), method.random_control(), data)
    assert len(control.history) == steps  # and retrains no layer that had no turn any more
    assert {name: int(kept.sum()) for name, kept in control.kept.items()} == {
        name: int(kept.sum()) for name, kept in method.kept.items()
    }


def test_a_last_round_has_no_more_steps_than_there_are_layers() -> None:
    schedule = {"name": "allocation_decides", "steps": 2, "turns": 3}
    with pytest.raises(InputError, match="turns = 3: a round has 2 steps with the order 'forward'"):
        recipe(order="forward", allocation="none", schedule=schedule).plan(mlp(4, 3, 2))


def test_statistics_that_are_taken_once_are_so_in_the_control() -> None:
    chosen = recipe(
        score="layer_obs", repair="masked_least_squares", rank="once", statistics="once", schedule=LINEAR
    )
    model, data = mlp(12, 16, 8, 4), blobs(64, 12, 4)
    method = prune(copy.deepcopy(model), chosen, data)
    control = prune(copy.deepcopy(model), method.random_control(), data)
    assert [record.layers for record in control.history] == [record.layers for record in method.history]


def test_where_small_layers_are_spared_the_uniform_control_is_another_one() -> None:
    """99 % of a perceptron: magnitude leaves the output layer many more weights than the same share does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10))
    method = prune(copy.deepcopy(model), methods.magnitude(0.95))
    left = {name: int(mask.sum()) for name, mask in method.masks.items()}
    uniform = prune(copy.deepcopy(model), methods.random(0.95)).masks
    control = prune(copy.deepcopy(model), method.random_control()).masks
    assert {name: int(mask.sum()) for name, mask in control.items()} == left
    assert left["2.weight"] > 1.5 * int(uniform["2.weight"].sum())


def test_what_does_not_fit_is_refused_before_anything_is_changed() -> None:
    def given(*rounds: dict[str, int]) -> Recipe:
        return Recipe(
            score="random",
            allocation=Recorded(removed=rounds),
            schedule={"name": "allocation_decides", "steps": len(rounds)},
        )

    model = mlp(4, 3, 2)
    with pytest.raises(InputError, match=r"recorded: round 1 says nothing of 2.weight"):
        prune(model, given({"0.weight": 3}))
    with pytest.raises(InputError, match=r"recorded: round 2 names 9.weight, which is not pruned"):
        prune(model, given({"0.weight": 3, "2.weight": 1}, {"0.weight": 3, "2.weight": 1, "9.weight": 0}))
    with pytest.raises(InputError, match=r"recorded: round 1 takes 13 of 0.weight, which has 12"):
        prune(model, given({"0.weight": 13, "2.weight": 1}))
    assert not any(bool((value == 0).any()) for name, value in model.named_parameters() if "weight" in name)


class TestInAStudy:
    def test_a_control_follows_its_method_cell_by_cell(self, tmp_path) -> None:
        """It may stand before its method, whose cells are run first all the same."""
        listed = {
            "random, of tickets": {"random_of": "tickets"},
            "random, of magnitude": {"random_of": "magnitude"},
            "magnitude": one_shot("magnitude", 0.5, 0.8),
            "tickets": tickets(),
        }
        study = tiny(methods=listed, controls={"random": "random, of magnitude"})
        run_study(study, tmp_path, workers=1)
        rows = table(tmp_path / "layers.csv")

        def counts(label: str) -> list[tuple[str, ...]]:
            return [
                tuple(row[key] for key in ("seed", "step", "layer", "kept"))
                for row in rows
                if row["method"] == label
            ]

        for label in ("tickets", "magnitude"):
            assert counts(label)
            assert sorted(counts(f"random, of {label}")) == sorted(counts(label))
        accuracies = {
            label: [row["test_loss"] for row in table(tmp_path / "results.csv") if row["method"] == label]
            for label in listed
        }
        assert accuracies["random, of tickets"] != accuracies["tickets"]

    @pytest.mark.usefixtures("no_report")
    def test_it_is_done_once_and_described(self, tmp_path) -> None:
        study = tiny(methods={"tickets": tickets(), "random": {"random_of": "tickets"}})
        run_study(study, tmp_path, workers=1)
        before = (tmp_path / "results.csv").read_text()
        run_study(study, tmp_path, workers=1)
        assert (tmp_path / "results.csv").read_text() == before
        assert "as many of each layer as 'tickets' takes" in (tmp_path / "study.json").read_text()

    @pytest.mark.usefixtures("no_report")
    def test_it_follows_what_a_stop_has_ended_within_a_round(self, tmp_path) -> None:
        stopped = {
            "recipe": {
                "score": "random",
                "granularity": "unit",
                "order": "forward",
                "allocation": "per_layer",
                "schedule": {"name": "explicit", "values": [0.3, 0.9]},
                "stop": {"name": "error_limit", "of": "loss", "increase": 0.5, "roll_back": False},
            }
        }
        settings = {"methods": {"stopped": stopped, "random": {"random_of": "stopped"}}, "controls": {}}
        study = tiny(**settings, model={"name": "mlp", "hidden": [12, 10]})
        run_study(study, tmp_path, workers=1)
        rows = table(tmp_path / "layers.csv")
        left: dict[str, dict[tuple[str, str], str]] = {"stopped": {}, "random": {}}
        for row in rows:
            if row["method"] in left:
                left[row["method"]][row["seed"], row["layer"]] = row["kept"]
        assert left["stopped"] == left["random"]
        assert any(int(row["step"]) % 2 for row in rows if row["method"] == "stopped" and row["step"] > "2")

    @pytest.mark.parametrize(
        ("method", "said"),
        [
            ({"random_of": "nobody"}, "random: random_of: there is no method 'nobody'"),
            ({"random_of": "random"}, "random: random_of: there is no method 'random'"),
            ({"random_of": "tickets", "settings": {"a": 1}}, "takes the settings and the sweep of the other"),
            ({"random_of": "tickets", "method": "magnitude"}, "give either 'method' .* or 'random_of'"),
        ],
    )
    def test_what_is_no_control_is_refused(self, method, said) -> None:
        with pytest.raises(InputError, match=said):
            tiny(methods={"tickets": tickets(), "random": method})
