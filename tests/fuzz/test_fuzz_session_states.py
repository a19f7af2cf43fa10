"""The first damaged states of sessions."""

from pathlib import Path

import harness
import session_states


def test_damaged_states_of_sessions(tmp_path: Path) -> None:
    found = harness.run(session_states.make_case(tmp_path), range(250), folder=tmp_path, fork=False)
    assert found.failures == []
    assert found.counts["refused, unchanged"] > 150
    assert found.counts["loaded equal"] > 0
