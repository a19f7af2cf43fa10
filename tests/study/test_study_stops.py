"""Studies of methods that stop at a limit: curves that end early, or before their first step."""

import pytest

from prunekit.pruning.stop_check import StopCheck
from prunekit.report import write_report
from prunekit.study import run_study
from tiny_study import tables, tiny

STEPS = {"schedule": {"name": "linear", "sparsity": 0.9, "steps": 6}, "score": "random"}


def stopping(**settings):
    return {"recipe": {**STEPS, "stop": {"name": "error_limit", "of": "error_rate", **settings}}}


def study():
    return tiny(
        methods={
            "random": {"recipe": STEPS},
            "stops": stopping(increase=0.2),
            "stays": stopping(increase=0.2, roll_back=False),
            "nowhere": {
                "recipe": {
                    **stopping(increase=0.0)["recipe"],
                    "schedule": {"name": "one_shot", "sparsity": 0.95},
                }
            },
        }
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stops")
    run_study(study(), folder, workers=1)
    return folder


def errors(rows, method, seed):
    return [
        1 - float(row["validation_accuracy"])
        for row in rows
        if (row["method"], row["seed"]) == (method, seed)
    ]


def test_curves_end_where_the_validation_error_passes_the_limit(done):
    rows, layers = tables(done)
    ended = 0
    for seed in "01":
        whole = errors(rows, "random", seed)
        allowed = errors(rows, "dense", seed)[0] + 0.2
        within = next((k for k, error in enumerate(whole) if error > allowed + 1e-9), len(whole))
        assert errors(rows, "stops", seed) == (whole[:within] or errors(rows, "dense", seed))
        assert errors(rows, "stays", seed) == whole[: within + 1]
        ended += within < len(whole)
    assert ended, "no seed of this study reaches the limit: the test tests nothing"
    assert {(row["method"], row["step"]) for row in layers if row["method"] == "nowhere"} == set()


def test_a_method_that_cannot_take_a_step_is_the_dense_network(done):
    rows, _ = tables(done)
    for seed in "01":
        (row,) = [row for row in rows if (row["method"], row["seed"]) == ("nowhere", seed)]
        (dense,) = [row for row in rows if (row["method"], row["seed"]) == ("dense", seed)]
        assert (row["step"], row["sparsity"], row["kept"]) == ("0", "0.0", row["prunable"])
        assert row["test_accuracy"] == dense["test_accuracy"]
    page = write_report(done).read_text()
    assert "nowhere" in page


@pytest.mark.usefixtures("no_report")
def test_a_study_that_is_interrupted_goes_on_to_the_same(done, tmp_path, monkeypatch):
    taken = []

    def checked(self, step, masked, original=StopCheck.broken):
        if len(taken) == 2:
            taken.append(step)
            raise RuntimeError("interrupted")
        taken.append(step)
        return original(self, step, masked)

    with monkeypatch.context() as patched:
        patched.setattr(StopCheck, "broken", checked)
        with pytest.raises(Exception, match="interrupted"):
            run_study(study(), tmp_path / "s", workers=1)
    run_study(study(), tmp_path / "s", workers=1)
    assert tables(tmp_path / "s") == tables(done)
