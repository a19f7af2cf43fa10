import os

import errands
import pytest
import torch

from prunekit.errors import InputError
from prunekit.study.jobs import Failure, Job, JobQueue
from prunekit.study.pool import run_jobs


class Notes:
    """A watcher that writes everything down."""

    def __init__(self):
        self.started_jobs = []
        self.fractions = {}
        self.ended = {}
        self.lost_jobs = []

    def lost(self, job, failure):
        self.lost_jobs.append(job.name)

    def started(self, job):
        self.started_jobs.append(job.name)

    def progressed(self, job, fraction):
        self.fractions.setdefault(job.name, []).append(fraction)

    def finished(self, job, seconds, failure):
        assert job.name not in self.ended
        assert seconds >= 0
        self.ended[job.name] = failure


def leave(folder, name, after=()):
    return Job(name, errands.leave, (folder, name), after=after)


def fail(kind, after=()):
    return Job(kind, errands.fail, (kind,), after=after)


def test_tasks_run_in_their_order_after_what_they_wait_for(tmp_path):
    jobs = [leave(tmp_path, "c", after=("a",)), leave(tmp_path, "b"), leave(tmp_path, "a")]
    notes = Notes()
    assert run_jobs(jobs, 1, notes) == []
    assert (tmp_path / "order").read_text().split() == ["b", "a", "c"]
    assert notes.started_jobs == ["b", "a", "c"]
    assert notes.fractions == {"a": [0.0, 0.5], "b": [0.0, 0.5], "c": [0.0, 0.5]}
    assert notes.ended == {"a": None, "b": None, "c": None}


def test_each_task_computes_on_one_thread_and_the_number_is_put_back(tmp_path):
    torch.set_num_threads(2)
    try:
        run_jobs([leave(tmp_path, "a")], 1, Notes())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (tmp_path / "a").read_text() == f"{os.getpid()} 1"


def test_a_failure_stops_only_what_waits_for_it(tmp_path):
    jobs = [
        fail("value"),
        leave(tmp_path, "a", after=("value",)),
        leave(tmp_path, "b", after=("a",)),
        leave(tmp_path, "c"),
    ]
    notes = Notes()
    failures = run_jobs(jobs, 1, notes)
    assert [(failure.name, failure.message, failure.skipped) for failure in failures] == [
        ("value", "ValueError: no good", False),
        ("a", "not run, because value failed", True),
        ("b", "not run, because a failed", True),
    ]
    assert "errands.py" in failures[0].trace
    assert notes.started_jobs == ["value", "c"]
    assert set(notes.ended) == {"value", "a", "b", "c"}


def test_a_task_that_exits_is_a_failure_like_others(tmp_path):
    failures = run_jobs([fail("exit"), leave(tmp_path, "a")], 1, Notes())
    assert [failure.message for failure in failures] == ["SystemExit: 3"]
    assert (tmp_path / "a").exists()


def test_after_a_full_disk_nothing_more_is_begun(tmp_path):
    failures = run_jobs([fail("full"), leave(tmp_path, "a"), leave(tmp_path, "b")], 1, Notes())
    assert [failure.message for failure in failures] == [
        "a/result.json: No space left on device",
        "not run, because full failed",
        "not run, because full failed",
    ]
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_no_failure_of_the_task():
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("a", interrupt, ())], 1, Notes())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("a\n b"), "a b"),
        (OSError(2, "No such file or directory", "x"), "x: No such file or directory"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError("odd"), "OSError: odd"),
        (RuntimeError("size\tmismatch"), "RuntimeError: size mismatch"),
        (MemoryError(), "MemoryError:"),
        (OSError(2, errands.MuteError(), "x"), "FileNotFoundError, whose text cannot be read"),
        (errands.MuteError(), "MuteError, whose text cannot be read"),
        (errands.StubbornError(), "StubbornError, whose text cannot be read"),
        (RuntimeError("\ud800"), r"RuntimeError: \ud800"),
        (InputError("x" * 10_000_000), "x" * 2000 + "..."),
    ],
)
def test_a_failure_is_told_in_one_line(error, message):
    assert Failure.of(Job("a", errands.talk, ()), error).message.rstrip() == message


def test_tasks_that_cannot_be_ordered_are_a_mistake_of_ours(tmp_path):
    with pytest.raises(AssertionError, match="same name"):
        JobQueue([leave(tmp_path, "a"), leave(tmp_path, "a")], Notes())
    with pytest.raises(AssertionError, match="not there"):
        JobQueue([leave(tmp_path, "a", after=("b",))], Notes())
