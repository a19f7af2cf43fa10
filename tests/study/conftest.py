"""A study that ran through once for all tests, and runs without a report for most."""

from pathlib import Path

import pytest

import prunekit.study.run as module
from prunekit.study import run_study
from tiny_study import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with its report; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    assert run_study(tiny(), folder, workers=1) == folder / "report.html"
    return folder


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than a whole tiny study."""
    monkeypatch.setattr(module, "_report", lambda layout: layout.root / "report.html")
