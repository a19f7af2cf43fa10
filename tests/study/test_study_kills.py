"""A study in a process of its own, killed and interrupted at moments that its files tell, not a clock."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_groups import living
from safetensors import safe_open

from prunekit.study import load_study, run_study
from tiny_study import hidden, stages, tables, tickets, write_study

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the workers")

PATIENCE = 900.0
METHODS = {f"{steps} steps": tickets(steps, epochs=3) for steps in (7, 8, 9)}


def start(study: Path, out: Path, workers: int = 2) -> subprocess.Popen:
    """As a person would, in a group of processes of its own."""
    command = ["compare", str(study), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(
        [sys.executable, "-m", "prunekit", "-q", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a runner in the background may have had Ctrl-C ignored, which processes inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(reached, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        if process is not None and process.poll() is not None:
            pytest.fail(f"it ended too early: {process.communicate()}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def steps_done(out: Path) -> dict[str, list[float]]:
    """The seconds of each step that is on disk, by cell: they would differ if a step were repeated."""
    found = {}
    for path in out.glob("cells/*/seed-*/state.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                history = json.loads(file.metadata()["session"])["history"]
        except FileNotFoundError:  # finished meanwhile
            continue
        found[str(path.parent.relative_to(out))] = [record["seconds"] for record in history]
    for path in out.glob("cells/*/seed-*/result.json"):
        rows = json.loads(path.read_text())["rows"]
        found[str(path.parent.relative_to(out))] = [row["seconds"] for row in rows]
    return found


@pytest.mark.usefixtures("no_report")
def test_a_study_that_is_killed_at_three_moments_gives_the_results_of_one_that_ran_through(tmp_path):
    study = write_study(tmp_path / "study.yaml", dataset="digits", methods=METHODS, controls={})
    out, whole = tmp_path / "killed", tmp_path / "whole"
    moments = [
        lambda: list(out.glob("networks/*/*/checkpoint-*")),  # in the first training
        lambda: any(len(steps) >= 3 for steps in steps_done(out).values()),  # in the first cells
        lambda: len(stages(out)) >= 4 and len(steps_done(out)) >= 3,  # in the later ones
    ]
    for moment, workers in zip(moments, (2, 1, 2), strict=True):  # every start of a worker costs seconds
        process = start(study, out, workers)
        wait_for(moment, process)
        before, steps = stages(out), steps_done(out)
        process.kill()
        process.communicate()
        wait_for(lambda process=process: not living(process.pid))  # no worker lives on
        assert not (out / "results.csv").exists()
        assert before.items() <= stages(out).items()
    last, known = stages(out), steps_done(out)

    # the lock of a killed run keeps nobody out; two workers and one, killed or not, give the same
    process = start(study, out, workers=1)
    printed, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaints
    assert printed.rstrip().endswith(str(out / "report.html"))
    run_study(load_study(study), whole, workers=1)
    assert tables(out) == tables(whole)
    assert len(tables(out)[0]) == 2 + 2 * (7 + 8 + 9)

    # nothing that was finished was done again, not even a step of a cell that was under way
    assert last.items() <= stages(out).items()
    for cell, seconds in known.items():
        assert steps_done(out)[cell][: len(seconds)] == seconds
    for cell, seconds in steps.items():
        assert steps_done(out)[cell][: len(seconds)] == seconds
    assert hidden(out) == []
    assert not list(out.rglob("state.safetensors"))


def test_ctrl_c_ends_at_once_with_one_line_and_no_worker_left(tmp_path):
    many = {f"{steps} steps": tickets(steps, epochs=400) for steps in (9, 10)}
    study = write_study(tmp_path / "study.yaml", dataset="digits", methods=many, controls={})
    out = tmp_path / "out"
    process = start(study, out)
    wait_for(lambda: stages(out), process)  # the trainings are over, the cells take minutes
    second = start(study, out)  # meanwhile nobody else may work there
    _, complaints = second.communicate(timeout=PATIENCE)
    assert second.returncode == 2
    assert complaints.count("\n") == 1
    assert f"another run is at work in {out} (process {process.pid})" in complaints

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    printed, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert printed == ""
    assert complaints == "prunekit: error: stopped; the same command goes on from here\n"
    wait_for(lambda: living(process.pid) == set())  # a busy machine takes a moment to end what was told to
    rows, _ = tables(out)
    assert {row["method"] for row in rows} <= {"dense"}  # what is finished can be looked at
