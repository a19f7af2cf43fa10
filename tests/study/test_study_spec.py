import json
import subprocess
import sys

import pytest
import yaml

from prunekit.errors import InputError
from prunekit.settings import with_value
from prunekit.study import Study, load_study
from tiny_study import one_shot, settings, tickets, tiny


def changed(key, value):
    return with_value(settings(), key, value)


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("colour", "methods"),
        ("dataset.colour", "validation"),
        ("model.colour", "hidden"),
        ("training.colour", "batch_size"),
        ("controls.colour", "dense_trained_as_long"),
        ("methods.tickets.colour", "sweep"),
        ("methods.tickets.recipe.colour", "schedule"),
        ("methods.tickets.recipe.schedule.colour", "rate"),
        ("methods.tickets.recipe.score", "magnitude"),
        ("methods.tickets.recipe.retrain.colour", "step"),
        ("methods.tickets.recipe.retrain.training.colour", "lr"),
        ("methods.random.sweep", "schedule"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_what_is_allowed(key, allowed):
    value = {"colour": [1]} if key.endswith("sweep") else "colour" if key.endswith("score") else 1
    with pytest.raises(InputError) as caught:
        Study.parse(changed(key, value))
    message = str(caught.value)
    assert "'colour'" in message
    assert allowed in message
    for place in key.split("."):
        if place not in ("colour", "sweep"):
            assert place in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "../up", "name: '../up' cannot name a folder"),
        ("name", "nul.txt", "name: 'nul.txt' cannot name a folder"),
        ("name", "", "name"),
        ("name", 3, "name = 3"),
        ("methods", {"a\nb": {"method": "random"}}, "methods: .*cannot be a label"),
        ("methods", {" ": {"method": "random"}}, "methods: a label is empty"),
        ("seeds", 0, "seeds = 0"),
        ("seeds", "many", "seeds = 'many'"),
        ("methods", {}, "methods"),
        ("methods", ["random"], "methods"),
        ("methods", {3: {"method": "random"}}, "methods"),
        ("methods.dense", {"method": "random"}, "'dense' is taken"),
        ("methods. ", {"method": "random"}, "label is empty"),
        ("methods.random", "random", "expected a mapping of settings"),
        ("methods.random.method", "random", "either 'method'"),
        ("methods.other", {}, "either 'method'"),
        ("methods.other", {"method": "nothing"}, "no method 'nothing'; `prunekit methods` lists all"),
        (
            "methods.other",
            {"method": "snip", "settings": {"q": 1}},
            "unknown key 'q'; allowed keys are: spars",
        ),
        (
            "methods.other",
            {"method": "iterative_magnitude", "epochs": 3},
            r"methods.other: .*'epochs' is a setting of iterative_magnitude: write settings: \{epochs: 3\}",
        ),
        ("methods.other", {"method": "random", "epochs": 3}, "unknown key 'epochs'; allowed keys are: from"),
        ("methods.other", {"method": ["snip"], "epochs": 3}, "unknown key 'epochs'"),
        ("methods.random.settings", {"sparsity": 0.5}, "'settings' belong to 'method'"),
        ("methods.random.sweep", [], "nothing in it"),
        ("methods.random.sweep", {"schedule.sparsity": []}, "nothing in it|empty"),
        ("methods.random.sweep", {"schedule.sparsity": 0.5}, "sweep"),
        ("methods.random.sweep", {"schedule.sparsity": [40]}, "write 0.4 for 40 %"),
        ("methods.random.sweep", {"schedule.sparsity.x": [1]}, "leads through 'sparsity', which holds 0.1"),
        (
            "controls.random",
            "rando",
            "'rando'; did you mean 'random'. labels are: random, tickets",
        ),
        ("dataset", 3, "dataset"),
        ("dataset", {}, "dataset: .*'name' is missing"),
        ("model", 3, "model: .*got 3"),
        ("training.epochs", -1, "training: .*epochs = -1"),
        ("training.iterations", 3, "either 'epochs' or 'iterations'"),
    ],
)
def test_what_cannot_be_a_study(key, value, message):
    with pytest.raises(InputError, match=message):
        Study.parse(changed(key, value))


def test_a_missing_key_is_named():
    values = settings()
    del values["dataset"]
    with pytest.raises(InputError, match="study: the key 'dataset' is missing"):
        Study.parse(values)


def test_a_label_that_is_written_twice_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    text = yaml.safe_dump(settings(methods={"a": one_shot("random", 0.5)}))
    path.write_text(text.replace("methods:\n", "methods:\n  a: {method: snip}\n"))
    with pytest.raises(InputError, match=r"a.yaml is not valid YAML: line \d+: the key 'a' is there twice"):
        load_study(str(path))


# ---- sweeps --------------------------------------------------------------------------------------


def test_a_sweep_of_lists_is_every_combination():
    sweep = {"schedule.steps": [2, 3], "schedule.rate": [0.1, 0.2]}
    study = tiny(methods={"a": {**tickets(), "sweep": sweep}}, controls={})
    found = [(cell.recipe.schedule.steps, cell.recipe.schedule.rate) for cell in study.cells]
    assert found == [(2, 0.1), (2, 0.2), (3, 0.1), (3, 0.2)]
    assert study.cells[1].name == "a (steps=2, rate=0.2)"


def test_a_sweep_of_points_is_these_points():
    sweep = [{"schedule.steps": 2, "schedule.rate": 0.1}, {"score": "random"}]
    study = tiny(methods={"a": {**tickets(), "sweep": sweep}}, controls={})
    found = [(cell.recipe.schedule.steps, cell.recipe.score.name) for cell in study.cells]
    assert found == [(2, "magnitude"), (3, "random")]


def test_a_sweep_of_a_named_method_changes_its_settings():
    method = {"method": "iterative_magnitude", "settings": {"steps": 2}, "sweep": {"sparsity": [0.5, 0.9]}}
    study = tiny(methods={"a": method}, controls={})
    assert [cell.recipe.schedule.sparsities()[-1] for cell in study.cells] == [0.5, 0.9]
    assert all(len(cell.recipe.schedule.sparsities()) == 2 for cell in study.cells)


def test_equal_recipes_under_one_label_count_once():
    assert len(tiny(methods={"a": one_shot("random", 0.5, 0.5)}, controls={}).cells) == 1


# ---- identity ------------------------------------------------------------------------------------


def reordered(values):
    """The same mapping with the keys in the opposite order, all the way down."""
    if isinstance(values, dict):
        return {key: reordered(values[key]) for key in reversed(values)}
    return [reordered(value) for value in values] if isinstance(values, list) else values


def identity(study):
    return study.network_key, sorted((cell.label, cell.key) for cell in study.cells)


def test_identity_does_not_depend_on_the_order_of_keys_or_on_the_way_through_yaml():
    study = tiny()
    assert identity(Study.parse(reordered(settings()))) == identity(study)
    assert identity(Study.parse(yaml.safe_load(yaml.safe_dump(study.to_dict())))) == identity(study)
    assert Study.parse(study.to_dict()) == study


def test_identity_is_the_same_in_another_process():
    code = (
        "import json, sys; from prunekit.study import Study; s = Study.parse(json.load(sys.stdin));"
        "print(s.network_key, *sorted(c.key + c.recipe.digest() for c in s.cells))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(settings()), capture_output=True, text=True, check=True
    )
    study = tiny()
    cells = sorted(cell.key + cell.recipe.digest() for cell in study.cells)
    assert found.stdout.split() == [study.network_key, *cells]


def test_identity_depends_on_all_that_a_result_depends_on():
    study = tiny()
    cells = {cell.key for cell in study.cells}
    for key, value in [("training.lr", 0.5), ("model.hidden", [9]), ("dataset.seed", 1)]:
        other = Study.parse(changed(key, value))
        assert other.network_key != study.network_key
        assert cells.isdisjoint(cell.key for cell in other.cells)


def test_identity_does_not_depend_on_words_seeds_and_other_methods():
    study = tiny()
    for key, value in [("seeds", 5), ("title", "other"), ("question", "?"), ("name", "other")]:
        assert identity(Study.parse(changed(key, value))) == identity(study)
    more = Study.parse(changed("methods.more", one_shot("magnitude", 0.5)))
    assert {cell.key for cell in study.cells} < {cell.key for cell in more.cells}
    assert more.network_key == study.network_key


def test_a_new_point_to_rewind_to_is_a_new_training_but_no_new_cell():
    """Its checkpoint is not there; the cells that are there start from equal values."""
    study = tiny()
    late = with_value(settings(), "methods.late", tickets())
    late = Study.parse(with_value(late, "methods.late.recipe.retrain.step", 3))
    assert late.checkpoints == (2, 3)
    assert late.network_key != study.network_key
    assert {cell.key for cell in study.cells} < {cell.key for cell in late.cells}
