"""What all tests share: examples, one thread and seeds that are the same every time.

Properties run from fixed examples, so that a change lands or not by no luck. Those who develop look for new
ones: `pytest --hypothesis-profile=random --hypothesis-seed=N` draws as many at random, and the profile `fuzz`
draws ten times as many (`make fuzz`).
"""

import gc
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from examples import EXAMPLES

settings.register_profile(
    "random",
    deadline=None,  # seconds say nothing on a busy machine
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("fuzz", settings.get_profile("random"), max_examples=10 * EXAMPLES)
settings.register_profile("fixed", settings.get_profile("random"), derandomize=True, database=None)
settings.load_profile("fixed")  # unless --hypothesis-profile names another, which pytest loads after this


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that share what a fixture of their module has made run in one process: it is made once."""
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
        if any(fixture.scope == "module" for found in fixtures for fixture in found):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_collection_finish() -> None:
    """The garbage collector runs less often, and leaves out the millions of objects of what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_all() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def global_seed() -> None:
    """Tests that draw from torch's global generator draw the same in any order."""
    torch.manual_seed(0)
