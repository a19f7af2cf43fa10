"""Studies whose methods learn from another network, which is trained once for each seed."""

import json
import shutil

import pytest
import torch

from prunekit import load_pretrained, prune
from prunekit.digests import read_tensors
from prunekit.errors import InputError
from prunekit.seeds import derive
from prunekit.study import Study, run_study
from prunekit.study.layout import TRAINED, Layout
from prunekit.study.stages import build, dataset
from tiny_study import TRAINING, table, tiny

TEACHER = {"model": {"name": "mlp", "hidden": [32]}, "training": {"iterations": 9, "batch_size": 16}}
LEARNS = {
    "score": "magnitude",
    "schedule": {"name": "one_shot", "sparsity": 0.5},
    "retrain": {"name": "fine_tune", "training": {"iterations": 6}},
    "teacher": {"name": "logits", "of": "given", "temperature": 3.0},
}
ALONE = {key: value for key, value in LEARNS.items() if key != "teacher"}


def learning(**changed) -> Study:
    settings = {"methods": {"learns": {"recipe": LEARNS}, "alone": {"recipe": ALONE}}, "teacher": TEACHER}
    return tiny(**{"controls": {}, "training": TRAINING, **settings, **changed})


def test_each_seed_has_its_teacher_and_a_method_learns_from_it(tmp_path) -> None:
    study = learning()
    run_study(study, tmp_path, workers=1)
    layout, data = Layout(tmp_path), dataset(study, None)
    teachers = study.teachers
    for seed in range(study.seeds):
        teacher = build(teachers, data, seed)
        teacher.load_state_dict(read_tensors(layout.network(teachers, seed) / TRAINED)[0])
        model = build(study, data, seed)
        model.load_state_dict(read_tensors(layout.network(study, seed) / TRAINED)[0])
        cell = next(cell for cell in study.cells if cell.label == "learns")
        pruned = prune(model, cell.recipe, data.train, seed=derive(seed, "cell"), teacher=teacher)
        saved = load_pretrained(layout.cell(cell, seed) / "model").state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in pruned.model.state_dict().items())
    rows = table(tmp_path / "results.csv")
    ends = {(row["method"], row["seed"]): row["test_loss"] for row in rows if row["step"] == "1"}
    assert len(set(ends.values())) == 4
    # the teacher is no row of the results: methods are measured against the network that they prune
    assert len([row for row in rows if row["method"] == "dense"]) == study.seeds
    assert json.loads((tmp_path / "study.json").read_text())["study"]["teacher"]["model"]["name"] == "mlp"


@pytest.mark.usefixtures("no_report")
def test_a_teacher_that_is_lost_is_trained_anew_and_nothing_changes(tmp_path) -> None:
    study = learning()
    run_study(study, tmp_path, workers=1)
    before = (tmp_path / "results.csv").read_text()
    layout = Layout(tmp_path)
    cell = next(cell for cell in study.cells if cell.label == "learns")
    shutil.rmtree(layout.network(study.teachers, 1))
    shutil.rmtree(layout.cell(cell, 1))
    run_study(study, tmp_path, workers=1)

    def untimed(text):
        return [line.rsplit(",", 1)[0] for line in text.splitlines()]

    assert untimed((tmp_path / "results.csv").read_text()) == untimed(before)


def test_what_a_teacher_is_names_the_results_of_those_who_learn_only() -> None:
    other = learning(teacher={**TEACHER, "training": {"iterations": 10, "batch_size": 16}})
    keys, others = ({cell.label: cell.key for cell in study.cells} for study in (learning(), other))
    assert keys["learns"] != others["learns"]
    assert keys["alone"] == others["alone"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"teacher": None}, r"methods: learns: the teacher is 'of: given', but the study gives none"),
        ({"methods": {"alone": {"recipe": ALONE}}}, "teacher: no method learns from it"),
        ({"teacher": {"model": "mlpp"}}, "mlpp"),
        ({"teacher": {"training": {"iterations": 3}}}, "model"),
    ],
)
def test_what_does_not_fit(changed, said) -> None:
    with pytest.raises(InputError, match=said):
        learning(**changed)


def test_a_teacher_of_other_classes_is_refused_before_anything_is_trained(tmp_path) -> None:
    study = learning(teacher={**TEACHER, "model": "own_parts:Seven"})
    with pytest.raises(InputError, match=r"method 'learns': .* needs the same classes"):
        run_study(study, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
