"""The same work by two states of the sources, each in a process of its own, in turn."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from side_by_side import ratio

HERE = Path(__file__).resolve().parent.parent


def compare(script: Path, cases: Sequence[str], rounds: int, before: str) -> dict[str, Any]:
    """For each case medians of the seconds of the processor now and at a commit, and their ratios.

    Args:
        script: called with a folder of its own and the case, it ends in `serve`.
        cases: what to do.
        rounds: that count; one beforehand does not, and makes what the others find.
        before: the commit.
    """
    figures: dict[str, Any] = {"before": before}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        source = stack.enter_context(_tree(before, Path(place) / "tree"))
        for case in cases:
            sides = {
                "now": stack.enter_context(_side(script, HERE / "src", Path(place) / "now", case)),
                "before": stack.enter_context(_side(script, source, Path(place) / "before", case)),
            }
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(rounds + 1):
                for name in sorted(sides, reverse=bool(number % 2)):
                    took = _once(sides[name])
                    if number:
                        seconds[name].append(took)
            figures[case] = {
                "median_cpu_seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
                "now_to_before": ratio(seconds, "now", "before"),
            }
    return figures


def serve(work: Callable[[], float | None]) -> None:
    """Do the work each time that a line comes in, and answer with the seconds of the processor that it took.

    Args:
        work: what to do; it may return the seconds of what counts of it.
    """
    for _ in sys.stdin:
        gc.collect()  # what earlier rounds have left is not this one's
        began = time.process_time()
        took = work()
        print(time.process_time() - began if took is None else took, flush=True)


@contextmanager
def _tree(commit: str, folder: Path) -> Iterator[Path]:
    """The sources of a commit, in a folder of their own."""
    subprocess.run(
        ["git", "worktree", "add", "--detach", folder, commit], cwd=HERE, check=True, capture_output=True
    )
    try:
        yield folder / "src"
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=HERE, check=True)


@contextmanager
def _side(script: Path, source: Path, folder: Path, case: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), case],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    try:
        yield process
    finally:
        process.communicate()


def _once(side: subprocess.Popen[str]) -> float:
    assert side.stdin is not None
    assert side.stdout is not None
    print("once more", file=side.stdin, flush=True)
    return float(side.stdout.readline())
