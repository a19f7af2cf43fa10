"""The pool with real processes; every start of one costs seconds, so each run has many things to show."""

import multiprocessing
import os
import threading

import errands
import pytest
from test_study_tasks import Notes, fail, leave

from prunekit.study.running import run_tasks
from prunekit.study.tasks import Task


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


def test_whatever_becomes_of_a_worker_the_other_tasks_are_done(tmp_path, capfd):
    tasks = [
        leave(tmp_path, "first"),
        fail("die"),
        fail("kill"),
        fail("unpicklable"),
        fail("exit"),
        leave(tmp_path, "heir", after=("die",)),
        leave(tmp_path, "second", after=("first",)),
        leave(tmp_path, "last"),
        Task("talk", errands.talk, ()),
        Task("unsendable", errands.leave, (threading.Lock(), "x")),
    ]
    notes = Notes()
    failures = {failure.name: failure.message for failure in run_tasks(tasks, 2, notes)}
    assert failures.pop("unsendable").startswith("TypeError: cannot pickle")
    assert failures == {
        "die": "its process ended with exit code 7",
        "kill": "its process was killed; the system does that when memory runs out",
        "unpicklable": "UnpicklableError: first line",
        "exit": "SystemExit: 3",
        "heir": "not run, because die failed",
    }
    assert sorted((tmp_path / "order").read_text().split()) == ["first", "last", "second"]
    assert notes.fractions == {name: [0.0, 0.5] for name in ("first", "second", "last")}
    assert set(notes.ended) == {task.name for task in tasks}
    for name in ("first", "second", "last"):
        process, threads = (tmp_path / name).read_text().split()
        assert process != str(os.getpid())
        assert threads == "1"
    out, err = capfd.readouterr()
    assert out == ""  # stdout belongs to the result
    assert "words on stdout" in err
    assert "bytes on stdout" in err
