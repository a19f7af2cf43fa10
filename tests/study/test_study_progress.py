import io
import logging

import pytest
from rich.console import Console

from prunekit.study.jobs import Failure, Job
from prunekit.study.progress import ETA, Display, _shortened, format_clock, format_duration

NO_TERMINAL = Console(file=io.StringIO(), force_terminal=False)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def job(name, cost=100.0):
    return Job(name, print, (), cost=cost)


def test_time_left_is_what_is_left_of_the_work_at_the_pace_so_far(clock):
    a, b = job("a"), job("b", 300.0)
    eta = ETA([a, b], 1, clock)
    eta.started(a)
    clock.now += 50  # a process starts and loads: no pace
    eta.progressed(a, 0.0)
    assert eta.left() is None
    clock.now += 10
    eta.progressed(a, 0.5)
    assert eta.fraction() == 0.125
    assert eta.left() == pytest.approx(70)  # 10 s for 50 units, 350 units to go
    clock.now += 5
    assert eta.left() == pytest.approx(65)
    clock.now += 5
    eta.finished(a, 1.0, None)
    assert eta.left() == pytest.approx(60)
    assert (eta.ended, eta.failed, eta.jobs) == (1, 0, 2)
    assert eta.elapsed == 70


def test_work_of_an_earlier_run_says_nothing_of_the_pace(clock):
    a = job("a")
    eta = ETA([a], 1, clock)
    eta.started(a)
    eta.progressed(a, 0.8)
    clock.now += 10
    eta.progressed(a, 0.9)
    assert eta.left() == pytest.approx(10)


def test_the_slow_first_steps_of_a_process_are_no_pace(clock):
    """A first epoch of 10 s, in which the machine reads its libraries, and others of 0.1 s."""
    jobs = [job(str(number)) for number in range(40)]
    eta = ETA(jobs, 1, clock)
    eta.started(jobs[0])
    eta.progressed(jobs[0], 0.0)
    clock.now += 10
    eta.progressed(jobs[0], 0.1)
    assert eta.left() is None
    for epoch in range(2, 6):
        clock.now += 0.1
        eta.progressed(jobs[0], epoch / 10)
    assert eta.left() == pytest.approx(10.4 / 50 * (4000 - 50))


def test_workers_share_the_tasks_but_not_a_task(clock):
    jobs = [job("a"), job("b"), job("c"), job("d", 1000.0)]
    eta = ETA(jobs, 2, clock)
    for each in jobs[:2]:
        eta.started(each)
        eta.progressed(each, 0.0)
    clock.now += 10
    for each in jobs[:2]:
        eta.finished(each, 1.0, None)
    assert eta.left() == pytest.approx(100)  # the long one alone, not (10 + 100) / 2


def test_a_failed_task_counts_as_over_but_not_for_the_pace(clock):
    a, b = job("a"), job("b")
    eta = ETA([a, b], 1, clock)
    eta.started(a)
    eta.progressed(a, 0.0)
    clock.now += 100
    eta.finished(a, 1.0, Failure(a.name, "no good"))
    eta.finished(b, 1.0, Failure(b.name, "no good"))
    assert eta.fraction() == 1.0
    assert eta.left() == 0
    assert eta.failed == 2
    assert ETA([], 1, clock).fraction() == 1.0


@pytest.mark.parametrize(
    ("seconds", "words", "digits"),
    [
        (None, "an unknown time", "-:--:--"),
        (0.2, "about 1 s", "0:00:00"),
        (59.6, "about 60 s", "0:01:00"),
        (200, "about 3 min", "0:03:20"),
        (6000, "about 1.7 h", "1:40:00"),
        (100_000, "about 27.8 h", "27:46:40"),
    ],
)
def test_durations(seconds, words, digits):
    assert format_duration(seconds) == words
    assert format_clock(seconds) == digits


def test_without_a_terminal_there_is_a_line_now_and_then(clock, caplog):
    jobs = [job(name) for name in "abcd"]
    with caplog.at_level(logging.INFO, "prunekit"), Display(jobs, 1, NO_TERMINAL, clock) as lines:
        for each in jobs:
            lines.started(each)
            lines.progressed(each, 0.0)
            for tenth in range(1, 10):
                clock.now += 1
                lines.progressed(each, tenth / 10)
            failure = Failure("b", "no good", "trace") if each.name == "b" else None
            lines.finished(each, 9.0, failure)
    assert [record.getMessage() for record in caplog.records] == [
        "4 runs to do",
        "1 of 4 runs done (40 %), about 22 s left",
        "b: failed: no good",
        "3 of 4 runs done, 1 failed (82 %), about 7 s left",
        "4 of 4 runs done, 1 failed, in 36 s",
    ]


def test_what_was_skipped_makes_no_noise(clock, caplog):
    jobs = [job("a")]
    with caplog.at_level(logging.INFO, "prunekit"), Display(jobs, 1, NO_TERMINAL, clock) as lines:
        lines.finished(jobs[0], 0.0, Failure("a", "not run, because b failed", skipped=True))
    assert "not run" not in caplog.text


def test_a_finished_study_says_nothing(caplog):
    with caplog.at_level(logging.INFO, "prunekit"), Display([], 1, NO_TERMINAL):
        pass
    assert caplog.text == ""


def test_on_a_terminal_there_are_nested_bars_of_80_columns():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=24, color_system=None)
    jobs = [job("short, seed 0"), job("a label that is far too long for a bar (sparsity=0.95), seed 1")]
    with Display(jobs, 2, console) as bars:
        for each in jobs:
            bars.started(each)
            bars.progressed(each, 0.0)
            bars.progressed(each, 0.25)
        bars._bars.refresh()
        shown = screen.getvalue().rpartition("0 of 2 runs done")[2]
        bars.finished(jobs[0], 1.0, None)
        bars.finished(jobs[1], 1.0, Failure("x", "no good"))
        bars._bars.refresh()
    assert "25%" in shown
    assert "short, seed 0" in shown
    assert "a label that is …ity=0.95), seed 1" in shown
    assert "left -:--:--" in shown
    assert "2 of 2 runs done, 1 failed" in screen.getvalue()
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_without_a_terminal_the_bars_are_not_drawn():
    screen = io.StringIO()
    with Display([job("a")], 1, Console(file=screen, force_terminal=False)) as lines:
        lines.started(job("a"))
        lines.progressed(job("a"), 0.5)
        lines.finished(job("a"), 1.0, None)
    assert screen.getvalue() == ""


def test_a_long_name_keeps_both_ends():
    assert _shortened("abc", 10) == "abc"
    assert _shortened("abcdefghijkl", 10) == "abcd…hijkl"
    assert len(_shortened("x" * 100)) == 34
