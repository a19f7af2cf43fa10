"""Studies whose files are damaged, or whose disk is full."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import own_parts
import pytest

import prunekit.study.layout as outputs_module
import prunekit.study.stages as stages_module
from prunekit.digests import read_tensors, write_json_with_digest, write_tensors
from prunekit.study import StudyError, run_study
from prunekit.study.layout import RESULT, STATE, stage_of
from tiny_study import hidden, stages, tables, tiny

pytestmark = pytest.mark.usefixtures("no_report")


def run(folder, **changes):
    return run_study(tiny(**changes), folder, workers=1)


def fussy(steps):
    """Fails at its second step."""
    schedule = {"name": "linear", "sparsity": 0.5, "steps": steps}
    return {"recipe": {"score": "own_parts:Fussy", "schedule": schedule}}


def flip(path):
    """The last bit of the last byte but nine is another: also a truth is another one then."""
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path):
    path.write_bytes(b"")


def change_a_digit(path):
    """Written as nicely as before: only the digest tells."""
    content = json.loads(path.read_text())
    figures = content["row"] if "row" in content else content["rows"][-1]
    figures["test_loss"] += 0.001
    path.write_text(json.dumps(content, indent=1) + "\n")


def make_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [
    ("networks/*/seed-1/result.json", lambda path: path.write_text('{"parameters": 1')),
    ("networks/*/seed-1/result.json", lambda path: path.write_text("[" * 100_000)),
    ("networks/*/seed-1/result.json", change_a_digit),
    ("networks/*/seed-1/trained.safetensors", flip),
    ("networks/*/seed-1/trained.safetensors", Path.unlink),
    ("networks/*/seed-1/checkpoint-2.safetensors", flip),
    ("networks/*/seed-1/checkpoint-2.safetensors", Path.unlink),
    ("cells/tickets-*/seed-1/result.json", empty),
    ("cells/tickets-*/seed-1/result.json", change_a_digit),
    ("cells/tickets-*/seed-1/result.json", make_a_folder),
    ("cells/tickets-*/seed-1/result.json", lambda path: write_json_with_digest(path, {"rows": 3})),
    ("cells/tickets-*/seed-1/model/model.safetensors", flip),
    ("cells/tickets-*/seed-1/model/model.safetensors", truncate),
    ("cells/tickets-*/seed-1/model/prunekit.json", empty),
    ("cells/tickets-*/seed-1/model/prunekit.json", Path.unlink),
    ("cells/tickets-*/seed-1/model/prunekit.json", lambda path: path.rename(path.with_suffix(".bak"))),
]


@pytest.mark.parametrize(("pattern", "damage"), DAMAGES)
def test_a_damaged_stage_is_said_and_done_anew_and_no_other(tmp_path, finished, caplog, pattern, damage):
    shutil.copytree(finished, tmp_path / "study")
    before = stages(tmp_path / "study")
    (path,) = (tmp_path / "study").glob(pattern)
    damage(path)
    run(tmp_path / "study")
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.match(rf"(cannot read )?{path}", said)
    assert said.endswith(
        "done anew: " + ("training of seed 1" if "networks" in pattern else "tickets, seed 1")
    )
    assert "\n" not in said
    assert tables(tmp_path / "study") == tables(finished)
    repeated = dict(stages(tmp_path / "study").items() - before.items())
    (stage,) = (tmp_path / "study").glob(pattern.partition("seed-1")[0] + "seed-1")
    assert list(repeated) == [str(stage.relative_to(tmp_path / "study"))]
    assert files(tmp_path / "study") == files(finished)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*/seed-*/**/*"))


def test_results_of_two_cells_that_are_swapped_are_done_anew(tmp_path, finished, caplog):
    shutil.copytree(finished, tmp_path / "study")
    one, two = sorted((tmp_path / "study").glob("cells/random-*/seed-0"))
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    run(tmp_path / "study")
    assert len([record for record in caplog.records if "it is the result of 'cells/" in record.message]) == 2
    assert tables(tmp_path / "study") == tables(finished)


def test_a_file_that_cannot_be_read_now_is_no_damage(tmp_path, finished, monkeypatch):
    shutil.copytree(finished, tmp_path / "study")
    before = stages(tmp_path / "study")

    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(outputs_module, "digest_of_file", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        run(tmp_path / "study")
    assert stages(tmp_path / "study") == before


STATES = [
    flip,
    truncate,
    empty,
    make_a_folder,
    lambda path: write_tensors(path, {}, {"stage": stage_of(path.parent), "session": "{}"}),
    lambda path: write_tensors(path, read_tensors(path)[0], {"stage": "cells/other/seed-0"}),
    lambda path: rewrite_session(path, "[" * 100_000),
    lambda path: rewrite_session(path, '{"recipe": 3}'),
    lambda path: change_session(path, history=[{"step": 1}]),
    lambda path: change_session(path, masks={"fc1.weight": {"tensor": "nowhere"}}),
    lambda path: change_session(path, recipe={}),
]


def rewrite_session(path, text):
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "session": text})


def change_session(path, **changes):
    tensors, metadata = read_tensors(path)
    session = json.dumps(json.loads(metadata["session"]) | changes)
    write_tensors(path, tensors, {**metadata, "session": session})


@pytest.mark.parametrize("damage", STATES)
def test_a_damaged_state_is_said_and_its_cell_begins_afresh(tmp_path, monkeypatch, caplog, damage):
    study = {"methods": {"fussy": fussy(3)}, "controls": {}, "seeds": 1}
    with pytest.raises(StudyError):
        run(tmp_path, **study)
    (state,) = tmp_path.rglob(STATE)
    damage(state)
    monkeypatch.setattr(
        own_parts.Fussy, "__call__", lambda self, e: {name: w.abs() for name, w in e.weights.items()}
    )
    run(tmp_path / "whole", **study)
    caplog.clear()
    run(tmp_path, **study)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith(str(state))
    assert said.endswith("; fussy, seed 0, begins afresh")
    assert tables(tmp_path) == tables(tmp_path / "whole")


def test_what_an_unfinished_cell_has_left_is_removed(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "study")
    (cell,) = (tmp_path / "study").glob("cells/tickets-*/seed-1")
    (cell / RESULT).unlink()
    (cell / "model" / "prunekit.json").rename(cell / "model" / "letter.txt")
    run(tmp_path / "study")
    assert tables(tmp_path / "study") == tables(finished)
    assert files(tmp_path / "study") == files(finished)


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
    save = stages_module.write_tensors

    def refuse(path, *args):
        if path.name == STATE:
            raise OSError(28, "No space left on device", str(path))
        save(path, *args)

    monkeypatch.setattr(stages_module, "write_tensors", refuse)
    with pytest.raises(StudyError, match=r"No space left on device \(5 could not be run\); what succeeded"):
        run(tmp_path)
