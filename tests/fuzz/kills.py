"""A parent with two workers that is killed at moments from 0 to 3 seconds: how long its workers live on.

    python tests/fuzz/kills.py [--count N]

The bar is a second. This is measured here, and not in the suite, which knows no clock.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "study"))

import errands
from process_groups import living
from test_study_jobs import Notes

from prunekit.study.jobs import Job
from prunekit.study.pool import run_jobs

LONGEST = 3.0


def lives_on(moment: float, folder: Path) -> float:
    """Seconds until nothing is left of the processes of a parent that was killed after so many seconds."""
    parent = os.fork()
    if parent == 0:
        os.setsid()
        run_jobs([Job(f"hang {k}", errands.hang, (folder, f"hang {k}")) for k in range(2)], 2, Notes())
        os._exit(1)
    time.sleep(moment)
    os.kill(parent, signal.SIGKILL)
    killed = time.monotonic()
    os.waitpid(parent, 0)
    while living(parent):
        time.sleep(0.002)
    return time.monotonic() - killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10)
    count = parser.parse_args().count
    moments = [LONGEST * k / max(count - 1, 1) for k in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        seconds = [lives_on(moment, Path(folder)) for moment in moments]
    late = sum(each > 1 for each in seconds)
    print(f"{count} parents killed: workers lived on for {max(seconds):.3f} s at most; {late} failures")
    sys.exit(bool(late))


if __name__ == "__main__":
    main()
