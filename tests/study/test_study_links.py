"""A folder of results that came from elsewhere may hold links: nothing outside of it is touched."""

import os
import shutil

import pytest

from prunekit.cli import run as command
from prunekit.digests import write_json_with_digest
from prunekit.errors import DataError
from prunekit.folder_lock import only_run
from prunekit.report import write_report, write_suite_reports
from prunekit.study import StudySuite, run_study
from prunekit.study.layout import RESULT, Layout, discard
from prunekit.study_files import refuse_links
from tiny_study import settings, tiny

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
pytestmark = [needs_links, pytest.mark.usefixtures("no_report")]


@pytest.fixture
def victim(tmp_path):
    """Somebody's folder outside, with what a run would remove or overwrite."""
    folder = tmp_path / "victim"
    (folder / ".git").mkdir(parents=True)
    for name in (".git/config", ".profile", "doc.txt", RESULT, "state.safetensors", "seed-0"):
        (folder / name).write_text("precious")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "study")


def content(folder):
    return {path: path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def in_place_of(path, target):
    """A link where a file or a folder was, or at a new place."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


FILES = (
    "study.json",
    "results.csv",
    "layers.csv",
    "SHA256SUMS",
    "units.json",
    "report.html",
    ".lock",
    "suite.json",
)
FOLDERS = ("figures", "networks", "cells", "cells/zzz", "cells/zzz/seed-9", "networks/zzz/seed-0")
STAGES = ("networks/*", "networks/*/seed-0", "cells/*/seed-0", "cells/*/seed-0/model")


@pytest.mark.parametrize("name", [*FILES, *FOLDERS, *STAGES, "cells/*/seed-0/result.json", "figures/x.svg"])
@pytest.mark.parametrize("what", ["run", "report"])
def test_a_link_in_a_study_is_refused_and_nothing_outside_changes(folder, victim, name, what):
    place = sorted(folder.glob(name))[0] if "*" in name else folder / name
    is_file = name in FILES or "." in name
    in_place_of(place, victim / "doc.txt" if is_file else victim)
    before = content(victim)
    with pytest.raises(DataError, match=f"{place} is a symbolic link: .*remove the link") as told:
        run_study(tiny(), folder, workers=1) if what == "run" else write_report(folder)
    assert "\n" not in str(told.value)
    assert content(victim) == before


def test_a_link_that_leads_nowhere_is_refused_too(folder, tmp_path):
    in_place_of(folder / "report.html", tmp_path / "new.html")
    with pytest.raises(DataError, match=r"report\.html is a symbolic link"):
        write_report(folder)
    assert not (tmp_path / "new.html").exists()


def test_a_link_inside_a_saved_network_is_replaced_with_its_folder(folder, victim):
    model = sorted(folder.glob("cells/*/seed-0/model"))[0]
    in_place_of(sorted(model.iterdir())[0], victim / "doc.txt")
    before = content(victim)
    run_study(tiny(), folder, workers=1)  # what the link leads to has another digest: the cell is done anew
    assert not any(path.is_symlink() for path in model.iterdir())
    assert content(victim) == before


def test_a_description_that_is_the_same_is_not_written_anew_and_another_is(folder):
    written = (folder / "study.json").stat().st_mtime_ns
    run_study(tiny(), folder, workers=1)
    assert (folder / "study.json").stat().st_mtime_ns == written
    text = (folder / "study.json").read_text()
    changed = text.replace('"seeds"', '"seedz"', 1)
    assert changed != text
    (folder / "study.json").write_text(changed)
    run_study(tiny(), folder, workers=1)
    assert (folder / "study.json").read_text() == text


def test_the_folder_itself_may_be_a_link_and_so_may_what_is_not_used(folder, tmp_path):
    (folder / "notes").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    Layout(tmp_path / "link").check()
    refuse_links(tmp_path / "absent")


@pytest.mark.parametrize("name", ["report.html", "small", "small/figures", "small/cells/a/seed-0"])
def test_a_link_in_a_suite_is_refused(tmp_path, victim, name):
    folder = tmp_path / "out"
    about = dict.fromkeys(("name", "title", "question", "expected", "command"), "words")
    write_json_with_digest(folder / "suite.json", {**about, "format": 2, "variants": ["small"]})
    in_place_of(folder / name, victim)
    before = content(victim)
    values = settings(variants={"small": {"model": {"name": "mlp", "hidden": [4]}}})
    values.pop("model")
    for act in (
        lambda: run_study(StudySuite.parse(values), folder, workers=1),
        lambda: write_suite_reports(folder),
    ):
        with pytest.raises(DataError, match=f"{folder / name} is a symbolic link"):
            act()
    assert content(victim) == before


def test_the_command_says_it_in_one_line(folder, victim, capsys):
    in_place_of(folder / "figures", victim)
    assert command(["report", str(folder)]) != 0
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert "is a symbolic link" in said


class TestEachByItself:
    """What removes and writes follows no link, also where nobody has looked before."""

    @pytest.mark.parametrize("name", [*FOLDERS, "networks/zzz", "cells/zzz/seed-9/.model.x"])
    def test_tidying(self, tmp_path, victim, name):
        (victim / "zzz").mkdir()
        shutil.copytree(victim / ".git", victim / "seed-9/.git")
        shutil.copytree(victim / ".git", victim / "zzz/seed-0/.git")
        in_place_of(tmp_path / "study" / name, victim)
        before = content(victim)
        Layout(tmp_path / "study").tidy()
        assert content(victim) == before

    def test_discarding_a_stage_removes_the_link(self, tmp_path, victim):
        before = content(victim)
        link = in_place_of(tmp_path / "study/networks/a/seed-0", victim)
        discard(link)
        assert not link.is_symlink()
        assert content(victim) == before

    def test_discarding_what_holds_links_removes_the_links(self, tmp_path, victim):
        before = content(victim)
        stage = tmp_path / "study/networks/a/seed-0"
        in_place_of(stage / "model", victim)
        in_place_of(stage / RESULT, victim / "doc.txt")
        discard(stage)
        assert not any(stage.iterdir())
        assert content(victim) == before

    def test_locking(self, tmp_path, victim):
        in_place_of(tmp_path / "study/.lock", victim / "doc.txt")
        with pytest.raises(DataError, match=r"\.lock is a symbolic link"), only_run(tmp_path / "study"):
            pass
        assert (victim / "doc.txt").read_text() == "precious"

    def test_locking_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / ".lock")
        with pytest.raises(DataError, match=r"\.lock is no regular file"), only_run(tmp_path):
            pass
