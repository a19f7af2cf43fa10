"""What these tests share: memory is counted in a process of its own, and not given back here."""

import pytest


@pytest.fixture(autouse=True)
def memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look through all that a whole suite has imported takes half a second for each pruning."""
    monkeypatch.setattr("prunekit.blockwise.pruning.give_back_memory", lambda: None)
