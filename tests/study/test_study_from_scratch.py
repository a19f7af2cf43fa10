"""Controls from scratch: the final shape of a structured pruning, from new values, with its budgets."""

import json
import math

import pytest
import torch

from prunekit import Recipe, prune
from prunekit.batches import as_batches
from prunekit.controls import scratch_control
from prunekit.errors import InputError
from prunekit.report.page import write_report
from prunekit.saving import load_masks
from prunekit.study import run_study
from prunekit.study.stages import _trained, dataset
from prunekit.training import Training
from small_nets import blobs, mlp
from tiny_study import TRAINING, one_shot, table, tickets, tiny

UNITS = {
    "granularity": "unit",
    "allocation": "global",
    "score": "unit_taylor",
    "schedule": {"name": "linear", "sparsity": 0.5, "steps": 2},
    "retrain": {"name": "fine_tune", "training": {"iterations": 3}},
}


def test_values_are_those_of_a_network_that_was_built_at_that_size() -> None:
    model = mlp(40, 200, 100, 4)
    chosen = Recipe.parse({**UNITS, "score": "magnitude", "allocation": "per_layer"})
    removed = {"0": 150, "2": 60}
    control = scratch_control(chosen, Training(iterations=0), list(removed), removed)
    pruned = prune(model, control, blobs(8, 40, 4), example_inputs=torch.randn(2, 40))
    pruned.shrink(torch.randn(2, 40))
    assert [tuple(layer.weight.shape) for layer in model if hasattr(layer, "weight")] == [
        (50, 40),
        (40, 50),
        (4, 40),
    ]
    for layer in (model[0], model[2]):
        torch.manual_seed(0)
        fresh = torch.nn.Linear(layer.in_features, 2000)
        bound = 1 / math.sqrt(layer.in_features)
        assert 0.97 * bound < float(layer.weight.detach().abs().max()) <= bound * (1 + 1e-6)
        assert float(layer.weight.detach().std()) == pytest.approx(
            float(fresh.weight.detach().std()), rel=0.05
        )
        assert float(layer.bias.detach().abs().max()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    ("retrain", "more", "step", "steps", "taken"),
    [
        ({"name": "fine_tune", "training": {"iterations": 7}}, {}, 4, 4, 28),
        ({"name": "fine_tune", "training": {"iterations": 7}}, {"retrain_every": 2}, 3, 4, 14),
        ({"name": "rewind", "step": 2, "training": {"iterations": 7}}, {}, 2, 4, 10),
        ({"name": "continued", "rest": 0.5, "training": {"iterations": 7}}, {}, 4, 4, 56),
        ({"name": "continued", "rest": 0.5, "training": {"iterations": 7}}, {}, 3, 4, 21),
        ({"name": "fine_tune", "training": {"iterations": 7}}, {"warm_up": {"iterations": 5}}, 0, 4, 0),
    ],
)
def test_the_budgets(retrain, more, step, steps, taken) -> None:
    study = tiny()
    data = dataset(study, None)
    dense = study.training.length(as_batches(data))
    chosen = Recipe.parse({**UNITS, **more, "retrain": retrain})
    assert _trained(study, chosen, step, steps, data, whole=False) == taken
    before = dense + more.get("warm_up", {}).get("iterations", 0)
    assert _trained(study, chosen, step, steps, data, whole=True) == taken + before


@pytest.mark.usefixtures("no_report")
def test_in_a_study_they_end_with_the_shape_of_each_recipe(tmp_path) -> None:
    own = {"recipe": UNITS, "from_scratch": True, "sweep": {"schedule.sparsity": [0.3, 0.6]}}
    study = tiny(
        methods={"units": own}, controls={}, model={"name": "mlp", "hidden": [12, 10]}, training=TRAINING
    )
    run_study(study, tmp_path, workers=1)
    layers = table(tmp_path / "layers.csv")
    results = table(tmp_path / "results.csv")
    left = {
        label: sorted(
            (row["seed"], row["layer"], row["kept"])
            for row in layers
            if row["method"] == label and row["step"] == last
        )
        for label, last in (
            ("units", "2"),
            ("units, from scratch", "1"),
            ("units, from scratch, whole budget", "1"),
        )
    }
    assert len(left["units"]) == 8  # two recipes, seeds and layers
    assert left["units"] == left["units, from scratch"] == left["units, from scratch, whole budget"]
    ends = [
        row
        for row in results
        if row["method"] != "dense" and (row["step"] == "2" or "scratch" in row["method"])
    ]
    assert len({row["test_loss"] for row in ends}) == len(ends) == 12
    dense = study.training.length(as_batches(dataset(study, None)))
    found = {
        json.loads(path.read_text())["recipe"]["retrain"]["training"]["iterations"]
        for path in tmp_path.glob("cells/*from-scratch*/*/model/prunekit.json")
    }
    assert found == {6, 6 + dense}
    page = write_report(tmp_path).read_text()
    assert page.count('<span class="tag">control</span>') == 2
    before = (tmp_path / "results.csv").read_text()
    run_study(study, tmp_path, workers=1)
    assert (tmp_path / "results.csv").read_text() == before


@pytest.mark.parametrize("granularity", [{"name": "unit", "inputs": True}, "block", "filter_shape"])
@pytest.mark.usefixtures("no_report")
def test_they_keep_the_very_input_features_blocks_and_shapes_of_the_method(tmp_path, granularity) -> None:
    """Units of a hidden layer are alike before a training, these are not."""
    blocks, shapes = granularity == "block", granularity == "filter_shape"
    recipe = {
        "score": "outgoing_norm" if isinstance(granularity, dict) else "random",
        "granularity": granularity,
        "allocation": "per_layer",
        "schedule": {"name": "one_shot", "sparsity": 0.5},
        "retrain": {"name": "fine_tune", "training": {"iterations": 2}},
    }
    own = {blocks: "own_parts:Deep", shapes: "own_parts:Strip"}
    model = own.get(True, {"name": "mlp", "hidden": [12, 10]})
    methods = {"units": {"recipe": recipe, "from_scratch": True}}
    study = tiny(methods=methods, controls={}, model=model, training=TRAINING)
    run_study(study, tmp_path, workers=1)
    for seed in (0, 1):
        folders = sorted(tmp_path.glob(f"cells/*/seed-{seed}/model"))
        own, *controls = (load_masks(folder) for folder in folders)
        assert len(controls) == 2
        assert own.kept < own.total
        for control in controls:
            assert all(torch.equal(own[name], control[name]) for name in own)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"a": {**tickets(), "from_scratch": True}}, "from_scratch: the granularity 'weight' removes single"),
        ({"a": {"recipe": {**UNITS, "retrain": "none"}, "from_scratch": True}}, "has no retraining"),
        (
            {"a": {"recipe": UNITS}, "b": {"random_of": "a", "from_scratch": True}},
            "belongs to the other method",
        ),
        (
            {"a": {"recipe": UNITS, "from_scratch": True}, "a, from scratch": one_shot("random", 0.5)},
            "the label 'a, from scratch' is taken",
        ),
    ],
)
def test_what_has_no_such_control_is_refused(methods, said) -> None:
    with pytest.raises(InputError, match=said):
        tiny(methods=methods, controls={})
