import errno
import json
import os

import pytest

from prunekit.errors import DataError, InputError
from prunekit.folder_lock import LOCK, only_run
from prunekit.study.layout import Layout
from prunekit.study_files import FORMAT, STUDY_JSON
from tiny_study import one_shot, tiny


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "study")


def test_a_new_or_empty_folder_is_accepted(layout):
    layout.check()
    layout.root.mkdir()
    (layout.root / ".hidden").touch()
    layout.check()


def test_a_file_is_refused(layout):
    layout.root.write_text("")
    with pytest.raises(DataError, match="study is a file: give a folder"):
        layout.check()


def test_a_foreign_folder_is_refused(layout):
    layout.root.mkdir()
    (layout.root / "letters.txt").touch()
    with pytest.raises(DataError, match="is not empty and holds no study: choose another folder with --out"):
        layout.check()


@pytest.mark.parametrize("saved", [{"format": FORMAT + 1}, {}, [], "text"])
def test_another_format_is_refused(layout, saved):
    layout.root.mkdir()
    (layout.root / STUDY_JSON).write_text(json.dumps(saved))
    with pytest.raises(DataError, match=rf"study.json says format .*reads and writes format {FORMAT}.*--out"):
        layout.check()


def test_a_damaged_description_is_named_and_can_be_removed(layout):
    (layout.root / "cells").mkdir(parents=True)
    (layout.root / STUDY_JSON).write_text('{"format": 1, "na')
    with pytest.raises(DataError, match=r"study.json is damaged: .*; remove this file"):
        layout.check()
    (layout.root / STUDY_JSON).unlink()
    layout.check()


def test_the_folder_of_a_cell_says_its_label(layout):
    study = tiny(
        methods={"Magnitude, one-shot (L1)": one_shot("magnitude", 0.5), "方法": one_shot("random", 0.5)},
        controls={},
    )
    first, second = study.cells
    assert layout.cell(first, 3).parent.name == f"magnitude-one-shot-l1-{first.key}"
    assert layout.cell(second, 3).parent.name == f"method-{second.key}"
    assert layout.cell(first, 3).name == "seed-3"


def test_labels_that_differ_in_punctuation_share_a_folder_only_for_equal_recipes(layout):
    study = tiny(
        methods={
            "a, b": one_shot("magnitude", 0.5),
            "a (b)": one_shot("magnitude", 0.6),
            "A b!": one_shot("magnitude", 0.5),
        },
        controls={},
    )
    folders = [layout.cell(cell, 0) for cell in study.cells]
    assert folders[0] != folders[1]
    assert folders[0] == folders[2]  # the same computation, which is run once


def test_tidying_removes_temporary_files_and_nothing_else(layout):
    cell = layout.root / "cells" / "a-1" / "seed-0"
    running = layout.root / "cells" / "a-1" / "seed-1"
    kept = [
        layout.root / ".lock",
        layout.root / ".gitignore",
        layout.root / STUDY_JSON,
        cell / "result.json",
        running / "state.safetensors",
    ]
    gone = [
        layout.root / ".results.csv.x1",
        layout.root / ".SHA256SUMS.x6",
        layout.root / ".study.json.x2",
        layout.root / "figures" / ".a.svg.x3",
        layout.root / "networks" / "n" / "seed-0" / ".trained.safetensors.x4",
        cell / ".model.x5" / "model.safetensors",
        cell / "state.safetensors",  # of a run that was killed between its last two breaths
    ]
    for path in [*kept, *gone]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    layout.tidy()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    assert not (cell / ".model.x5").exists()


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with only_run(tmp_path / "a"):
        with (
            pytest.raises(InputError, match=rf"at work in .*a \(process {os.getpid()}\): .*--out"),
            only_run(tmp_path / "a"),
        ):
            pass
        with only_run(tmp_path / "b"):
            pass


def test_where_nothing_was_written_nothing_is_left(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("new", "empty"):
        with only_run(tmp_path / folder):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    with only_run(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"file", LOCK}


def test_the_lock_goes_with_its_holder(tmp_path):
    with pytest.raises(ZeroDivisionError), only_run(tmp_path):
        raise ZeroDivisionError
    with only_run(tmp_path):
        pass


def test_a_file_that_is_left_behind_locks_nobody_out(tmp_path):
    (tmp_path / LOCK).write_text("123456")
    with only_run(tmp_path):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())


def test_where_nothing_can_be_locked_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_run(tmp_path):
        assert "cannot be locked (Operation not supported)" in caplog.text
