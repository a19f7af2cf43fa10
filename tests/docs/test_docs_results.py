"""The folders of docs/results are complete without what `prunekit report` makes of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from prunekit.report import write_report, write_suite_reports
from prunekit.report.page import read_suite
from prunekit.report.read_tables import check_tables, read_layers, read_results
from prunekit.study_files import read_study

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
FOLDERS = sorted(page.parent for page in RESULTS.glob("*/README.md"))
STUDIES = sorted(path.parent for path in RESULTS.rglob("study.json"))
SUITE = sorted(path.parent for path in RESULTS.rglob("suite.json"))
MAX_BYTES = 15 << 20
"""The tables are most of it: 9 MB."""
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def label(folder: Path) -> str:
    return folder.relative_to(RESULTS).as_posix()


def tracked() -> list[Path]:
    """The files of docs/results that git knows, without what a report made beside them."""
    if shutil.which("git") is None or not (RESULTS.parents[1] / ".git").exists():
        pytest.skip("no git repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=RESULTS, check=True, capture_output=True, text=True
    )
    return [RESULTS / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("folder", STUDIES, ids=label)
def test_the_settings_and_the_tables_of_a_study_pass_their_digests(folder: Path) -> None:
    assert read_study(folder / "study.json").format == 2
    assert check_tables(folder)
    assert read_results(folder / "results.csv")
    assert read_layers(folder / "layers.csv")


@pytest.mark.parametrize("folder", SUITE, ids=label)
def test_a_suite_has_a_folder_for_each_of_its_variants(folder: Path) -> None:
    assert sorted(read_suite(folder).variants) == [path.name for path in STUDIES if path.parent == folder]


@pytest.mark.parametrize("folder", FOLDERS, ids=label)
def test_what_a_page_links_to_is_in_the_repository(folder: Path) -> None:
    known = {path.resolve() for path in tracked()}
    for link in LINK.findall((folder / "README.md").read_text(encoding="utf-8")):
        if "://" in link:
            continue
        target = (folder / link).resolve()
        assert target.exists(), link
        assert target in known or not target.is_relative_to(RESULTS), f"{link} is not tracked by git"


def test_every_folder_has_a_page_and_its_line_in_the_list_of_results() -> None:
    folders = {path.relative_to(RESULTS).parts[0] for path in tracked() if path.parent != RESULTS}
    listed = re.findall(
        r"^\| \[([\w-]+)\]\(\1/README\.md\)", (RESULTS / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(folders) == [folder.name for folder in FOLDERS]


def test_git_holds_no_reports_and_no_figures_that_no_page_shows() -> None:
    files = tracked()
    shown = {
        (page.parent / link).resolve()
        for page in [RESULTS.parents[1] / "README.md", *RESULTS.glob("*/README.md")]
        for link in LINK.findall(page.read_text(encoding="utf-8"))
    }
    assert [path for path in files if path.name == "report.html"] == []
    assert [path for path in files if path.suffix in (".png", ".svg") and path.resolve() not in shown] == []
    assert sum(path.stat().st_size for path in files if path.exists()) < MAX_BYTES


def copied(folder: Path, to: Path) -> Path:
    for path in tracked():
        if path.is_relative_to(folder):
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return to


def test_the_report_of_a_study_is_made_from_what_git_holds(tmp_path: Path) -> None:
    folder = copied(RESULTS / "thinet-vgg", tmp_path / "study")
    page = write_report(folder).read_text(encoding="utf-8")
    assert read_study(folder / "study.json").title in page
    assert (folder / "figures" / "accuracy-sparsity.svg").is_file()


def test_the_reports_of_a_suite_are_made_from_what_git_holds(tmp_path: Path) -> None:
    folder = copied(RESULTS / "structured-mlp", tmp_path / "suite")
    page = write_suite_reports(folder).read_text(encoding="utf-8")
    for variant in read_suite(folder).variants:
        assert f"{variant}/report.html" in page
        assert (folder / variant / "report.html").is_file()
