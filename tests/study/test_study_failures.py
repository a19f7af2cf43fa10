"""Studies of which something fails or cannot be done."""

import logging

import own_parts
import pytest

from prunekit.errors import InputError, ModelError
from prunekit.settings import with_value
from prunekit.study import Study, StudyError, run_study
from tiny_study import one_shot, settings, stages, tables, tiny


def run(folder, **changes):
    return run_study(tiny(**changes), folder, workers=1)


def fussy(steps):
    return {
        "recipe": {
            "score": "own_parts:Fussy",
            "schedule": {"name": "linear", "sparsity": 0.5, "steps": steps},
        }
    }


def test_a_failed_cell_does_not_lose_the_others_nor_their_report(tmp_path, caplog):
    methods = {"fussy": fussy(2), **settings()["methods"]}
    with (
        caplog.at_level(logging.INFO, "prunekit"),
        pytest.raises(StudyError) as caught,
    ):
        run(tmp_path, methods=methods)
    message = str(caught.value)
    assert message.startswith("fussy, seed 0: failed: RuntimeError: I do not like zeros (1 more failed)")
    assert message.endswith(f"what succeeded is in {tmp_path / 'report.html'}")
    assert "fussy, seed 1: failed: RuntimeError: I do not like zeros" in caplog.text
    rows, _ = tables(tmp_path)
    assert {row["method"] for row in rows} == {"dense", "random", "tickets"}
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.usefixtures("no_report")
def test_a_failed_cell_goes_on_from_its_last_step_when_the_fault_is_gone(tmp_path, monkeypatch):
    study = {"methods": {"fussy": fussy(3), "random": one_shot("random", 0.5)}, "seeds": 1}
    with pytest.raises(StudyError):
        run(tmp_path, **study)
    monkeypatch.setattr(
        own_parts.Fussy, "__call__", lambda self, e: {name: w.abs() for name, w in e.weights.items()}
    )
    before = stages(tmp_path)
    run(tmp_path, **study)
    assert before.items() <= stages(tmp_path).items()
    rows, _ = tables(tmp_path)
    assert [row["step"] for row in rows if row["method"] == "fussy"] == ["1", "2", "3"]


def test_a_failed_training_names_its_seed_and_what_was_not_run(tmp_path):
    diverging = {"epochs": 2, "optimizer": "sgd", "lr": 1e30}
    with pytest.raises(
        StudyError, match=r"training of seed 0: failed: the loss is nan .*\(1 more failed, 6 co"
    ):
        run(tmp_path, training=diverging)
    assert tables(tmp_path) == ([], [])


REFUSED = [
    ("methods.tickets.recipe.targets", ["fc9"], InputError, "method 'tickets': 'fc9' matches no layer"),
    (
        "methods.tickets.recipe.retrain.step",
        99,
        InputError,
        "'tickets': retrain 'rewind' goes .*to step 99",
    ),
    ("model", "own_parts:not_a_number", ModelError, "method 'random .sparsity=0.5.': .*NaN"),
    ("model", {"name": "own_parts:linear", "inputs": 5}, ModelError, r"own_parts:linear cannot .*\(4,\)"),
    ("dataset", "nothing", InputError, "no dataset 'nothing'"),
]


@pytest.mark.parametrize(("key", "value", "error", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path, key, value, error, message):
    def parse_and_run():
        study = Study.parse(with_value(settings(), key, value), allow=["own_parts"])
        run_study(study, tmp_path / "s", workers=1)

    with pytest.raises(error, match=message):
        parse_and_run()
    assert not (tmp_path / "s").exists()


def test_no_worker_is_no_choice(tmp_path):
    with pytest.raises(InputError, match="workers = 0: a whole number of at least 1"):
        run_study(tiny(), tmp_path / "s", workers=0)


@pytest.mark.usefixtures("no_report")
def test_a_model_and_a_score_of_ones_own(tmp_path):
    run(tmp_path, model="own_parts:linear", methods={"fussy": fussy(1)}, controls={}, seeds=1)
    rows, _ = tables(tmp_path)
    assert [(row["model"], row["method"]) for row in rows] == [
        ("own_parts:linear", "dense"),
        ("own_parts:linear", "fussy"),
    ]


@pytest.mark.usefixtures("no_report")
def test_a_cell_that_hangs_is_ended_and_keeps_its_steps(tmp_path):
    methods = {"sleepy": {"recipe": fussy(2)["recipe"] | {"score": "own_parts:Sleepy"}}}
    study = tiny(methods=methods | {"random": one_shot("random", 0.5)}, seeds=1)
    with pytest.raises(
        StudyError, match=r"^sleepy, seed 0: failed: took longer than 6 s, the limit of a cell;"
    ):
        run_study(study, tmp_path, workers=1, cell_timeout=6)
    assert [row["method"] for row in tables(tmp_path)[0]] == ["dense", "random"]
    assert len(list(tmp_path.glob("cells/sleepy-*/seed-0/state.safetensors"))) == 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "3", True])
def test_a_limit_of_time_is_a_number_of_seconds(tmp_path, seconds):
    with pytest.raises(InputError, match=r"cell_timeout = .*: a number of seconds above 0 is needed"):
        run_study(tiny(), tmp_path / "s", workers=1, cell_timeout=seconds)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("out", ["con", "line\nend", "a/NUL.txt/b", "ends."])
def test_results_go_where_every_system_has_a_folder(tmp_path, out):
    with pytest.raises(InputError, match="cannot name a folder"):
        run_study(tiny(), tmp_path / out, workers=1)
    assert not list(tmp_path.iterdir())
