"""Studies whose files are damaged, or whose disk is full."""

import os

import pytest

import prunekit.study.stages as stages_module
from prunekit.errors import DataError
from prunekit.study import StudyError, run_study
from prunekit.study.layout import STATE
from tiny_study import hidden, one_shot, settings, stages, tables, tickets, tiny

pytestmark = pytest.mark.usefixtures("no_report")


def run(folder, **changes):
    return run_study(tiny(**changes), folder, workers=1)


def fussy(steps):
    """Fails at its second step."""
    schedule = {"name": "linear", "sparsity": 0.5, "steps": steps}
    return {"recipe": {"score": "own_parts:Fussy", "schedule": schedule}}


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        ("networks/*/seed-1/result.json", '{"parameters": 1'),
        ("networks/*/seed-1/result.json", "[]"),
        ("cells/tickets-*/seed-1/result.json", ""),
        ("cells/tickets-*/seed-1/result.json", '{"rows": [], "layers": []}'),
        ("cells/tickets-*/seed-1/result.json", '{"rows": 3}'),
    ],
)
def test_a_damaged_result_is_refused_at_once_and_repeated_when_removed(tmp_path, pattern, content):
    run(tmp_path)
    before = stages(tmp_path)
    expected = tables(tmp_path)
    (path,) = tmp_path.glob(pattern)
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{path} is damaged: .*; remove the folder {path.parent} and run"):
        run(tmp_path)
    for file in sorted(path.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    path.parent.rmdir()
    run(tmp_path)
    assert tables(tmp_path) == expected
    repeated = dict(stages(tmp_path).items() - before.items())
    assert list(repeated) == [str(path.parent.relative_to(tmp_path))]


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("trained.safetensors", 100),
        ("trained.safetensors", 0),
        ("checkpoint-2.safetensors", 4),
        ("trained.safetensors", None),
    ],
)
def test_a_truncated_or_lost_network_is_named(tmp_path, pattern, size):
    run(tmp_path, seeds=1, methods={"random": one_shot("random", 0.5), "tickets": tickets()})
    (path,) = tmp_path.glob(f"networks/*/seed-0/{pattern}")
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    what = "missing" if size is None else "damaged or truncated"
    with pytest.raises(StudyError, match=rf"{path} is {what}.*; remove the folder {path.parent}"):
        run(tmp_path, seeds=1, methods=settings()["methods"] | {"more": tickets(steps=2)})


def test_a_truncated_state_is_named_and_the_others_are_done(tmp_path):
    with pytest.raises(StudyError):
        run(tmp_path, methods={"fussy": fussy(2)}, controls={}, seeds=1)
    (state,) = tmp_path.rglob("state.safetensors")
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(
        StudyError, match=rf"{state} is damaged or truncated .*; remove the folder {state.parent}"
    ):
        run(tmp_path, methods={"fussy": fussy(2), "random": one_shot("random", 0.5)}, seeds=1)
    assert {row["method"] for row in tables(tmp_path)[0]} == {"dense", "random"}


class Disk:
    """Stands in for `os.replace`, and is full from the n-th file on."""

    def __init__(self, replace, room):
        self.replace, self.room = replace, room

    def __call__(self, source, target):
        self.room -= 1
        if self.room < 0:
            raise OSError(28, "No space left on device", str(source), None, str(target))
        return self.replace(source, target)


@pytest.mark.parametrize("room", [0, 1, 2, 3, 7, 12])
def test_a_full_disk_ends_the_run_and_what_is_done_stays(tmp_path, finished, monkeypatch, room):
    folder = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Disk(os.replace, room))
        # the tables cannot be written either: the error of the disk itself reaches the caller
        with pytest.raises(OSError, match=r"No space left on device: '.*/study/[^.][^']*'"):
            run(folder)
    assert hidden(folder) == []
    before = stages(folder)
    run(folder)
    assert before.items() <= stages(folder).items()
    assert tables(folder) == tables(finished)


def test_a_disk_that_is_full_for_one_cell_only_gives_up_the_rest(tmp_path, monkeypatch):
    save = stages_module._save_state

    def refuse(path, *args):
        if path.name == STATE:
            raise OSError(28, "No space left on device", str(path))
        save(path, *args)

    monkeypatch.setattr(stages_module, "_save_state", refuse)
    with pytest.raises(StudyError, match=r"No space left on device \(5 could not be run\); what succeeded"):
        run(tmp_path)
