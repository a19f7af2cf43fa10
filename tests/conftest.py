"""What all tests share: one thread, so that results and times do not depend on the machine."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "prunekit", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
# what is checked before a change lands is the same every time; new examples are for those who develop
settings.register_profile("ci", settings.get_profile("prunekit"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "prunekit")


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_all() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def global_seed() -> None:
    """Tests that draw from torch's global generator draw the same in any order."""
    torch.manual_seed(0)
