"""A study that ran through once for all tests."""

from pathlib import Path

import pytest

from prunekit.study import run_study
from tiny_study import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with its report; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    assert run_study(tiny(), folder, workers=1) == folder / "report.html"
    return folder
