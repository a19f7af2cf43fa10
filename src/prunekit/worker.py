"""The first thing that a process of prunekit's own does: see to it that it ends with its parent.

A parent that is killed can tell nobody. Only the standard library is imported here: torch takes seconds, in
which nobody would notice.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def work(connection: Connection) -> None:
    """What a worker process of a study runs.

    Args:
        connection: to the parent, which sends the jobs.
    """
    end_with_parent()
    from prunekit.study.pool import serve

    serve(connection)


def end_with_parent() -> None:
    """Let this process, which multiprocessing has started, end at once when its parent does.

    Linux sends a signal, which acts also while compiled code holds the interpreter; elsewhere a thread waits.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if not (sys.platform == "linux" and _signal_at_death()):
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    elif os.getppid() != parent.pid:  # it had died before the signal was asked for
        os._exit(1)


def _signal_at_death() -> bool:
    """Ask the kernel for SIGKILL at the end of the thread that started this process; whether it agreed."""
    try:
        return ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
