"""What all tests share: examples, one thread and seeds that are the same every time.

Properties run from fixed examples, so that a change lands or not by no luck. Those who develop look for new
ones: `pytest --hypothesis-profile=random --hypothesis-seed=N` draws as many at random, and the profile `fuzz`
draws ten times as many (`make fuzz`).
"""

import gc
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadgroup`: tests that share what a fixture of their module makes run in one process.

    The mark `xdist_group` does nothing where pytest 9.2 meets xdist 3.8: every process made those fixtures,
    and the log of `--durations` showed each twice.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def shares_fixtures(file: str) -> bool:
        return 'scope="module"' in config.rootpath.joinpath(file).read_text(encoding="utf-8")

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if shares_fixtures(file) else nodeid

    return ByFixtures(config, log)


def pytest_collection_finish() -> None:
    """The garbage collector runs less often: it looks through the millions of objects of what is imported."""
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
    torch.default_generator.manual_seed(0)  # torch.manual_seed notes the stack for each kind of device


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies end without a report: its figures take longer than a whole tiny study."""
    monkeypatch.setattr("prunekit.study.run._report", lambda layout: layout.root / "report.html")
