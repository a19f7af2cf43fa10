"""What all fuzz runs share: cases by number, a process that may crash, and an audit of what the code does.

A fuzz run is `python tests/fuzz/NAME.py [--count N] [--start K]`; every case follows from its number alone,
so that a case that failed is run again with `--start K --count 1`. The suite runs a short form of each.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# networks of the other tests, also where a run is started by itself
sys.path += [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "zoo")]

SECONDS = 2.0
"""The longest that a case may take, in seconds of the processor."""

BATCH = 250
"""Cases per forked process: one that crashes takes no others with it but those."""

Case = Callable[[int], str]
"""Runs a case, given its number, and names its outcome; raises `AssertionError` where something is wrong."""


@dataclass
class Outcomes:
    """What came of the cases of a run.

    Attributes:
        counts: of each outcome how often.
        failures: (number, what was wrong) of each case that failed.
        slowest: seconds of the processor of the slowest case.
        peak: MiB that the memory of a process grew at the most.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    slowest: float = 0.0
    peak: float = 0.0


class Audit:
    """A record of what a process does that reading a file must never do.

    Recorded are, while it is armed: imports of modules that belong neither to Python nor to an installed
    package, code that is compiled or run other than by an import or by torch.fx, files that are opened for
    writing outside of `writable`, processes, and sockets. A hook of `sys.addaudithook` cannot be taken off,
    so there is one per process.
    """

    def __init__(self, writable: Path) -> None:
        self.found: list[str] = []
        self.armed = False
        self._writable = (str(writable.resolve()), "/dev/", str(Path.home() / ".cache"))
        self._known = _known_modules()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "import" and not self._is_known(str(args[0])):
            self.found.append(f"import of {args[0]}")
        elif event == "open" and self._writes(args):
            self.found.append(f"open of {args[0]} for writing")
        elif event == "exec" and not _is_ours(args[0]):
            self.found.append(f"exec of {getattr(args[0], 'co_filename', args[0])}")
        elif event.startswith(("subprocess.", "os.system", "os.exec", "os.posix_spawn", "socket.", "pty.")):
            self.found.append(f"{event} {args!r}"[:200])
        elif event == "pickle.find_class":
            self.found.append(f"{event} {args!r}")

    def _is_known(self, name: str) -> bool:
        top = name.partition(".")[0]
        return not top or top in self._known

    def _writes(self, args: tuple[Any, ...]) -> bool:
        path, mode, flags = args
        if isinstance(path, int):  # of a file that has been opened, and heard, already
            return False
        writes = (isinstance(mode, str) and any(sign in mode for sign in "wxa+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        return bool(writes) and not str(path).startswith(self._writable)


def _known_modules() -> frozenset[str]:
    """Top-level modules of Python and of the packages that are installed beside prunekit."""
    return (
        frozenset(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions()) | {"prunekit"}
    )


def _is_ours(code: Any) -> bool:
    """Code of an import (files of installed packages), or that torch.fx or dataclasses generate."""
    name = getattr(code, "co_filename", "")
    return bool(re.match(r"<(eval_with_key|string|attrs generated|frozen|lambdifygenerated)", name)) or (
        name.endswith(".py")
        and ("site-packages" in name or f"{os.sep}prunekit{os.sep}" in name or "lib/python" in name)
    )


def run(case: Case, numbers: range, *, folder: Path, fork: bool = True, limit_mib: float = 1024) -> Outcomes:
    """Run cases in processes of their own.

    Args:
        case: runs one.
        numbers: of the cases.
        folder: where the cases may write.
        fork: whether in forked processes, which may crash; else in this one, without the audit.
        limit_mib: how much the memory of a process may grow.
    """
    outcomes = Outcomes()
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        if fork:
            _forked(case, batch, folder, outcomes, limit_mib)
        else:
            _batch(case, batch, outcomes, None, limit_mib)
    return outcomes


def _forked(case: Case, batch: range, folder: Path, outcomes: Outcomes, limit_mib: float) -> None:
    import pickle  # between our own two processes

    while len(batch):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            own = Outcomes()
            progress = os.fdopen(writing, "wb", buffering=0)
            try:
                audit = Audit(folder)
                for number in batch:
                    progress.write(b".")
                    _batch(case, range(number, number + 1), own, audit, limit_mib)
                progress.write(b"!" + pickle.dumps(own))
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        begun, _, rest = said.partition(b"!")
        if rest:
            found: Outcomes = pickle.loads(rest)
            outcomes.counts += found.counts
            outcomes.failures += found.failures
            outcomes.slowest = max(outcomes.slowest, found.slowest)
            outcomes.peak = max(outcomes.peak, found.peak)
            return
        # what the cases before the crash gave is lost with the process: they are run once more without it
        place = max(len(begun) - 1, 0)  # of the case that was under way
        outcomes.failures.append((batch[place], f"the process ended with status {status}"))
        _forked(case, batch[:place], folder, outcomes, limit_mib)
        batch = batch[place + 1 :]


def _batch(case: Case, batch: range, outcomes: Outcomes, audit: Audit | None, limit_mib: float) -> None:
    for number in batch:
        memory, began = _peak(), time.process_time()
        if audit is not None:
            audit.found.clear()
            audit.armed = True
        try:
            outcomes.counts[case(number)] += 1
        except AssertionError as error:
            outcomes.failures.append((number, str(error)))
        except BaseException as error:
            outcomes.failures.append((number, f"raw {type(error).__name__}: {str(error)[:300]}"))
        if audit is not None:
            audit.armed = False
            outcomes.failures += [(number, found) for found in audit.found]
        took, grew = time.process_time() - began, _peak() - memory
        outcomes.slowest, outcomes.peak = max(outcomes.slowest, took), max(outcomes.peak, grew)
        if took > SECONDS:
            outcomes.failures.append((number, f"took {took:.1f} s"))
        if grew > limit_mib:
            outcomes.failures.append((number, f"took {grew:,.0f} MiB"))


def refused(error: Exception) -> str:
    """The outcome of a case that was refused, in one line as it must be."""
    text = str(error)
    assert "\n" not in text, f"more than one line: {text!r}"
    assert len(text) < 2000, f"a message of {len(text):,} characters"
    return "refused"


def _peak() -> float:
    """The largest memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(title: str, make_case: Callable[[Path], Case], count: int, *, limit_mib: float = 1024) -> None:
    """The command of a fuzz run; exit code 1 where a case failed.

    Args:
        title: what the cases are, in the plural.
        make_case: given a folder to write in, the function that runs a case.
        count: how many by default.
        limit_mib: how much the memory of a process may grow.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process, to debug a case")
    asked = parser.parse_args()
    began = time.perf_counter()
    # in memory where there is such a place: cases write many small files
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        case = make_case(Path(place))
        numbers = range(asked.start, asked.start + asked.count)
        found = run(case, numbers, folder=Path(place), fork=not asked.here, limit_mib=limit_mib)
    for number, what in found.failures[:20]:
        print(f"case {number}: {what}")
    counts = ", ".join(f"{value:,} {key}" for key, value in sorted(found.counts.items()))
    print(
        f"{asked.count:,} {title}: {counts}; {len(found.failures)} failures; slowest {found.slowest:.2f} s, "
        f"memory at most +{found.peak:.0f} MiB; {time.perf_counter() - began:.0f} s"
    )
    sys.exit(bool(found.failures))
