"""Studies of methods whose parts carry something from step to step, interrupted and not."""

import pytest

from prunekit.pruning.step_work import StepWork
from prunekit.study import run_study
from tiny_study import TRAINING, table, tiny

STATEFUL = {
    "moved": {
        "recipe": {
            "score": {"name": "movement", "training": TRAINING},
            "schedule": {"name": "linear", "sparsity": 0.6, "steps": 3},
            "retrain": {"name": "distill", "training": TRAINING},
        }
    },
    "random": {"method": "random"},
}


def study():
    return tiny(seeds=1, methods=STATEFUL)


@pytest.mark.usefixtures("no_report")
def test_interrupted_it_goes_on_to_the_same(tmp_path, monkeypatch):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run_study(study(), whole, workers=1)
    original, steps = StepWork.remove, []

    def interrupted(self, step, *rest):
        if "movement" in str(self.recipe.score.name):
            steps.append(step.number)
            if steps == [1, 2]:
                raise RuntimeError("interrupted")
        return original(self, step, *rest)

    monkeypatch.setattr(StepWork, "remove", interrupted)
    with pytest.raises(Exception, match="interrupted"):
        run_study(study(), parted, workers=1)
    run_study(study(), parted, workers=1)
    assert steps == [1, 2, 2, 3]  # the first step is not taken again
    results = [table(folder / "results.csv") for folder in (whole, parted)]
    assert results[0] == results[1]
    assert {row["method"] for row in results[0]} >= {"moved", "random"}
