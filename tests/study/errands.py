"""Jobs for the tests of jobs; a worker process imports them from here."""

import logging
import os
import signal
import stat
import sys
import time
from pathlib import Path

import torch

from prunekit.units.oracle import parallel_map


class UnpicklableError(Exception):
    """Cannot be sent to another process: it holds a function, and its constructor takes two arguments."""

    def __init__(self, first, second):
        super().__init__(first)
        self.second = lambda: second


class MuteError(Exception):
    """Cannot say what is wrong."""

    def __str__(self):
        raise RuntimeError("no words")


class StubbornError(BaseException):
    """No ordinary exception, and it exits when asked for its text."""

    def __str__(self):
        sys.exit(5)


def leave(folder: Path, name: str, progress) -> None:
    """Report half the way, and leave a file that says in what order the jobs were done."""
    progress(0.0)
    progress(0.5)
    with (folder / "order").open("a") as file:
        file.write(f"{name}\n")
    (folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")


def talk(progress) -> None:
    print("words on stdout")
    os.write(1, b"bytes on stdout\n")


def give_back_a_function(progress):
    return lambda: progress


def warn(progress) -> None:
    logging.getLogger("prunekit.study.stages").warning("a state is %s", "damaged")
    logging.getLogger("prunekit.study.stages").info("not worth telling")


def count_as_torch_does(progress) -> None:
    """Raises if a bar of tqdm's has made a semaphore, which nobody would take away."""
    from tqdm import std

    std.tqdm(total=1, disable=True)
    if hasattr(std.TqdmDefaultWriteLock, "mp_lock"):
        raise RuntimeError("a lock of several processes")


def hang(folder: Path, name: str, progress) -> None:
    progress(0.0)
    (folder / name).touch()
    while True:
        time.sleep(1000)


def die_at_first(folder: Path, name: str, progress) -> None:
    """End the process the first time, after half of the work; the second time be done."""
    progress(0.5)
    if not (folder / name).exists():
        (folder / name).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def hang_at_first(folder: Path, name: str, progress) -> None:
    """Say where it runs and hang, the first time; the second time say where it runs."""
    import ray

    progress(0.5)
    path = folder / name
    places = path.read_text().split() if path.exists() else []
    path.write_text(" ".join([*places, ray.get_runtime_context().get_node_id()]))
    while not places:
        time.sleep(1000)


def fork_and_hang(progress) -> None:
    """As statistics do that are shared out over processes."""

    def part(examples):
        while examples.stop > 1:  # not for the first, which is looked at in this process
            time.sleep(1000)
        return {"x": torch.zeros(1)}

    parallel_map(part, torch.zeros(4, 1), 2)


def fail(kind: str, progress) -> None:
    if kind == "unpicklable":
        raise UnpicklableError("first\nline", "second")
    if kind == "exit":
        sys.exit(3)
    if kind == "die":
        os._exit(7)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "full":
        raise OSError(28, "No space left on device", "a/result.json")
    if kind == "mute":
        raise MuteError
    if kind == "stubborn":
        raise StubbornError
    if kind == "surrogates":
        raise ValueError("\ud800 \x1b[31m \0")
    if kind == "megabytes":
        raise ValueError("x" * 50_000_000)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "babble":
        for number in range(3, 100):  # among them is the pipe to the parent
            try:
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.write(number, b"\0\0\0\5hello")
            except OSError:
                pass
        time.sleep(1000)
    raise ValueError("no\n  good")
