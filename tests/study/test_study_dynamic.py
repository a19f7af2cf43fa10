"""Studies of networks that are trained sparse, interrupted and not."""

import pytest

from prunekit.pruning.step_work import StepWork
from prunekit.study import run_study
from tiny_study import TRAINING, table, tiny


@pytest.mark.parametrize("name", ["set", "rigl"])
@pytest.mark.usefixtures("no_report")
def test_an_interrupted_one_goes_on_to_the_same_and_the_last_step_is_the_result(name, tmp_path, monkeypatch):
    method = {
        "method": name,
        "settings": {"sparsity": 0.5, "steps": 4, "epochs": 2, "training": {"lr": 0.01}},
    }
    study = tiny(seeds=1, training=TRAINING, methods={"dynamic": method, "random": {"method": "random"}})
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run_study(study, whole, workers=1)
    original, steps = StepWork.remove, []

    def interrupted(self, step, *rest):
        if self.recipe.grow is not None:
            steps.append(step.number)
            if steps == [1, 2, 3]:
                raise RuntimeError("interrupted")
        return original(self, step, *rest)

    monkeypatch.setattr(StepWork, "remove", interrupted)
    with pytest.raises(Exception, match="interrupted"):
        run_study(study, parted, workers=1)
    run_study(study, parted, workers=1)
    assert steps == [1, 2, 3, 3, 4]
    results = [table(folder / "results.csv") for folder in (whole, parted)]
    assert results[0] == results[1]
    (row,) = [row for row in results[0] if row["method"] == "dynamic"]
    assert (row["step"], row["kept"]) == ("4", str(round(int(row["prunable"]) / 2)))
