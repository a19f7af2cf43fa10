"""The pool with real processes; every start of one costs seconds, so each run has many things to show."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import errands
import pytest
from process_groups import living
from test_study_jobs import Notes, fail, leave

from prunekit.study.jobs import Job
from prunekit.study.pool import LocalPool, run_jobs


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


def test_whatever_becomes_of_a_worker_the_other_tasks_are_done(tmp_path, capfd, caplog):
    jobs = [
        leave(tmp_path, "first"),
        fail("die"),
        fail("kill"),
        fail("unpicklable"),
        fail("exit"),
        *(fail(kind) for kind in ("mute", "stubborn", "surrogates", "megabytes", "interrupt", "babble")),
        leave(tmp_path, "heir", after=("die",)),
        leave(tmp_path, "second", after=("first",)),
        leave(tmp_path, "last"),
        Job("talk", errands.talk, ()),
        Job("warn", errands.warn, ()),
        Job("count", errands.count_as_torch_does, ()),
        Job("give", errands.give_back_a_function, ()),
        Job("unsendable", errands.leave, (threading.Lock(), "x")),
    ]
    notes = Notes()
    failures = {failure.name: failure.message for failure in run_jobs(jobs, 2, notes)}
    assert [record.getMessage() for record in caplog.records] == ["a state is damaged"]
    assert len(failures.pop("megabytes")) < 3000
    assert failures.pop("babble").startswith("its process said what cannot be read: UnpicklingError: ")
    assert failures.pop("unsendable").startswith("TypeError: cannot pickle")
    assert failures == {
        "die": "its process ended with exit code 7",
        "kill": "its process was killed; the system does that when memory runs out",
        "unpicklable": "UnpicklableError: first line",
        "exit": "SystemExit: 3",
        "mute": "MuteError, whose text cannot be read",
        "stubborn": "StubbornError, whose text cannot be read",
        "surrogates": r"ValueError: \ud800 \x1b[31m \x00",
        "interrupt": "KeyboardInterrupt:",
        "heir": "not run, because die failed",
    }
    assert sorted((tmp_path / "order").read_text().split()) == ["first", "last", "second"]
    assert notes.fractions == {name: [0.0, 0.5] for name in ("first", "second", "last")}
    assert set(notes.ended) == {job.name for job in jobs}
    for name in ("first", "second", "last"):
        process, threads = (tmp_path / name).read_text().split()
        assert process != str(os.getpid())
        assert threads == "1"
    out, err = capfd.readouterr()
    assert out == ""  # stdout belongs to the result
    assert "words on stdout" in err
    assert "bytes on stdout" in err


def test_a_task_that_hangs_is_ended_and_the_others_are_done(tmp_path):
    jobs = [
        Job("hang", errands.hang, (tmp_path, "hang")),
        leave(tmp_path, "a"),
        leave(tmp_path, "heir", after=("hang",)),
        leave(tmp_path, "b"),
    ]
    notes = Notes()
    failures = {failure.name: failure.message for failure in run_jobs(jobs, 1, notes, 3.0)}
    assert failures == {
        "hang": "took longer than 3 s, the limit of a cell",
        "heir": "not run, because hang failed",
    }
    assert sorted((tmp_path / "order").read_text().split()) == ["a", "b"]
    assert set(notes.ended) == {"hang", "a", "heir", "b"}


def test_a_task_whose_process_dies_is_begun_again_as_often_as_it_may(tmp_path, caplog):
    jobs = [Job("dies once", errands.die_at_first, (tmp_path, "x")), fail("kill"), fail("exit")]
    notes = Notes()
    failures = LocalPool(2, attempts=3).run(jobs, notes, None)
    assert {failure.name: failure.lost for failure in failures} == {"kill": True, "exit": False}
    assert sorted(notes.lost_jobs) == ["dies once", "kill", "kill"]
    assert set(notes.ended) == {"dies once", "kill", "exit"}
    assert "dies once: its process was killed" in caplog.text
    assert "begun again (2 of 3)" in caplog.text


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the workers")
PATIENCE = 300.0


def parent_of_workers(jobs, workers):
    """A process in a group of its own that runs jobs, until it is killed."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            run_jobs(jobs, workers, Notes())
        finally:
            os._exit(1)
    return child


def seconds_until(reached):
    began = time.monotonic()
    while not reached():
        assert time.monotonic() < began + PATIENCE, "waited too long"
        time.sleep(0.01)
    return time.monotonic() - began


def kill(parent):
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)


@on_linux
def test_a_worker_ends_with_its_parent_also_while_it_imports(tmp_path, monkeypatch):
    fake = tmp_path / "torch"
    fake.mkdir()
    (fake / "__init__.py").write_text(
        f"import time\nopen({str(tmp_path / 'imports')!r}, 'w').close()\nwhile True: time.sleep(1000)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # which workers inherit
    parent = parent_of_workers([leave(tmp_path, "a")], 2)
    seconds_until((tmp_path / "imports").exists)
    kill(parent)
    seconds_until(lambda: not living(parent))


@on_linux
def test_processes_that_a_worker_has_forked_end_with_it(tmp_path):
    parent = parent_of_workers([Job("fork", errands.fork_and_hang, ()), leave(tmp_path, "a")], 2)
    seconds_until(lambda: len(living(parent)) >= 5)  # parent, tracker of resources, two workers, one forked
    kill(parent)
    seconds_until(lambda: not living(parent))


@on_linux
def test_workers_end_with_their_parent_at_any_moment(tmp_path):
    jobs = [Job(f"hang {k}", errands.hang, (tmp_path, f"hang {k}")) for k in range(2)]
    for tenth in range(10):
        parent = parent_of_workers(jobs, 2)
        time.sleep(tenth / 30)
        kill(parent)
        seconds_until(lambda parent=parent: not living(parent))


def test_a_script_without_a_guard_is_not_run_again_by_its_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path += {[str(Path(errands.__file__).parent)]!r}\n"
        "from pathlib import Path\n"
        "from test_study_jobs import Notes, leave\n"
        "from prunekit.study.pool import run_jobs\n"
        "print('run')\n"
        f"assert run_jobs([leave(Path({str(tmp_path)!r}), name) for name in 'ab'], 2, Notes()) == []\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout + done.stderr == "run\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "order", "script.py"}
