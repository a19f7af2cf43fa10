"""The short form of run_folders.py."""

from pathlib import Path

import harness
import run_folders


def test_damages_to_run_folders(tmp_path: Path) -> None:
    case = run_folders.make_case(tmp_path)
    found = harness.run(case, range(40), folder=tmp_path)
    assert found.failures == []
    assert sum(found.counts.values()) == 40
    assert found.counts["redone"] > 10
