"""Methods that begin at the network which another method has left, without its dead units."""

import json

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

UNITS = {
    "score": "magnitude",
    "granularity": "unit",
    "schedule": {"name": "one_shot", "sparsity": 0.5},
    "retrain": {"name": "fine_tune", "training": {"iterations": 4}},
}
REWINDS = {"name": "rewind", "step": 0, "training": {"iterations": 4}}
WEIGHTS = {
    "score": "magnitude",
    "schedule": {"name": "one_shot", "sparsity": 0.5},
    "retrain": {"name": "fine_tune", "training": {"iterations": 4}},
}


def starting(**changed) -> Study:
    settings = {
        "methods": {
            "units": {"recipe": UNITS},
            "weights": {"recipe": WEIGHTS},
            "units, weights": {"recipe": WEIGHTS, "start": "units"},
            "random": {"random_of": "units, weights"},
        }
    }
    return tiny(**{"controls": {"random": "random"}, "training": TRAINING, **settings, **changed})


def test_a_method_begins_at_what_another_has_left(tmp_path) -> None:
    study = starting()
    run_study(study, tmp_path, workers=1)
    layout, data = Layout(tmp_path), dataset(study, None)
    cells = {cell.label: cell for cell in study.cells}
    for seed in range(study.seeds):
        model = build(study, data, seed)
        model.load_state_dict(read_tensors(layout.network(study, seed) / TRAINED)[0])
        whole = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)
        first = prune(model, cells["units"].recipe, data.train, seed=derive(seed, "cell"))
        first.shrink(data.test.inputs[:2])
        second = prune(first.model, cells["units, weights"].recipe, data.train, seed=derive(seed, "cell"))
        saved = load_pretrained(layout.cell(cells["units, weights"], seed) / "model").state_dict()
        expected = second.model.state_dict()
        assert saved.keys() == expected.keys()
        for name, value in expected.items():  # the shrunk network computes in another order
            torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)
        left = sum(weight.numel() for weight in first.model.parameters() if weight.dim() > 1)
        ends = {row["method"]: row for row in table(tmp_path / "results.csv") if row["seed"] == str(seed)}
        assert left < whole
        for label in ("units, weights", "random"):
            row = ends[label]
            assert int(row["prunable"]) == whole
            assert int(row["kept"]) == second.kept.kept == left - left // 2
            assert float(row["sparsity"]) == pytest.approx(1 - int(row["kept"]) / whole)
            assert float(row["compression_ratio"]) == pytest.approx(whole / int(row["kept"]))
        assert int(ends["weights"]["kept"]) == whole - whole // 2
    again = (tmp_path / "results.csv").read_text()
    run_study(study, tmp_path, workers=1)
    assert (tmp_path / "results.csv").read_text() == again


def test_where_a_method_begins_is_part_of_its_name() -> None:
    keys = {cell.label: cell.key for cell in starting().cells}
    assert keys["weights"] != keys["units, weights"]
    other = {**UNITS, "schedule": {"name": "one_shot", "sparsity": 0.25}}
    methods = {"units": {"recipe": other}, "units, weights": {"recipe": WEIGHTS, "start": "units"}}
    changed = {cell.label: cell.key for cell in starting(methods=methods, controls={}).cells}
    assert changed["units, weights"] != keys["units, weights"]
    assert json.dumps(starting().to_dict()).count('"start": "units"') == 1


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"recipe": WEIGHTS, "start": "unit"}, "there is no method 'unit'"),
        ({"recipe": WEIGHTS, "start": "later"}, "there is no method 'later' of one recipe"),
        ({"recipe": WEIGHTS, "start": "swept"}, "there is no method 'swept' of one recipe"),
        ({"recipe": UNITS, "start": "weights"}, "start: the granularity 'unit' removes whole units"),
        (
            {
                "recipe": {
                    **WEIGHTS,
                    "retrain": {"name": "rewind", "step": 0, "training": {"iterations": 4}},
                },
                "start": "units",
            },
            "goes back to values of the whole network",
        ),
        ({"random_of": "units", "start": "units"}, "'start' belongs to the other method"),
    ],
)
def test_what_cannot_begin_elsewhere_is_refused(method, said) -> None:
    methods = {
        "units": {"recipe": UNITS},
        "weights": {"recipe": WEIGHTS},
        "later": {"recipe": WEIGHTS, "start": "units"},
        "swept": {"recipe": WEIGHTS, "sweep": {"schedule.sparsity": [0.5, 0.7]}},
        "wrong": method,
    }
    with pytest.raises(InputError, match=said):
        starting(methods=methods, controls={})
