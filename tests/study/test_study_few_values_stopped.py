"""A study whose weights get few values, stopped by Ctrl-C at any of its works, goes on to the same bits."""

from pathlib import Path

import pytest

import prunekit.study.stages as stages_of_cells
from prunekit.parts.quantize.base import FewValues
from prunekit.pruning import trainings
from prunekit.pruning.step_work import StepWork
from prunekit.study import run_study
from tiny_study import TRAINING, hidden, tables, tiny

METHOD = {
    "recipe": {
        "schedule": {"name": "linear", "sparsity": 0.6, "steps": 2},
        "retrain": {"name": "fine_tune", "training": TRAINING},
        "quantize": {
            "name": "entropy",
            "training": TRAINING,
            "refine": TRAINING,
            "zero_dead": True,
            "bias_bits": 5,
        },
    }
}


def run(out: Path) -> None:
    study = tiny(seeds=1, methods={"small": METHOD}, model={"name": "mlp", "hidden": [12, 8]}, controls={})
    run_study(study, out, workers=1)


def files(out: Path) -> dict[str, bytes]:
    """What the cell has left of its network, byte for byte; beside it only seconds differ."""
    found = [*out.glob("cells/**/model.packed"), *out.glob("cells/**/model.safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out)
    assert len(files(out)) == 2
    return out


MOMENTS = {
    "at the first removal": (StepWork, "remove", 1),
    "at the second removal": (StepWork, "remove", 2),
    "when the last retraining is over": (StepWork, "quantize", 1),
    "when the values are settled": (FewValues, "settle", 1),
    "when they are settled again": (FewValues, "settle", 2),
    "when the biases are rounded": (StepWork, "record", 2),
    "at the saving of the session": (stages_of_cells, "_save_session", 2),
    "at the folder": (stages_of_cells, "save_pretrained", 1),
    "at the published file": (stages_of_cells, "pack", 1),
    "at the smallest file": (stages_of_cells, "pack", 2),
    "at the result": (stages_of_cells, "write_result", 2),
    "in a training": (trainings, "train", 2),
    "in the training of few values": (trainings, "train", 3),
    "in the training of their centroids": (trainings, "train", 4),
}


WRITING = ["at the saving of the session", "at the folder", "at the smallest file", "at the result"]


@pytest.mark.parametrize(
    ("moment", "after"), [*((each, False) for each in MOMENTS), *((each, True) for each in WRITING)]
)
@pytest.mark.usefixtures("no_report")
def test_stopped_and_started_again_it_is_the_same_to_the_bit(moment, after, whole, tmp_path, monkeypatch):
    owner, name, number = MOMENTS[moment]
    original, calls = getattr(owner, name), []

    def stopped(*args, **more):
        calls.append(name)
        if len(calls) == number and not after:
            raise KeyboardInterrupt
        if len(calls) == number and name == "train":  # in the middle of it
            steps = []

            def report(done, total):
                steps.append(done)
                if 2 * done >= total:
                    raise KeyboardInterrupt

            original(*args, **{**more, "report": report})
        done = original(*args, **more)
        if len(calls) == number:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert len(calls) == number
    run(tmp_path)
    assert tables(tmp_path) == tables(whole)
    assert files(tmp_path) == files(whole)
    assert hidden(tmp_path) == []
