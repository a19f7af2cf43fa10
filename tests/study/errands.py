"""Tasks for the tests of tasks; a worker process imports them from here."""

import os
import signal
import sys
from pathlib import Path

import torch


class UnpicklableError(Exception):
    """Cannot be sent to another process: it holds a function, and its constructor takes two arguments."""

    def __init__(self, first, second):
        super().__init__(first)
        self.second = lambda: second


def leave(folder: Path, name: str, progress) -> None:
    """Report half the way, and leave a file that says in what order the tasks were done."""
    progress(0.0)
    progress(0.5)
    with (folder / "order").open("a") as file:
        file.write(f"{name}\n")
    (folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")


def talk(progress) -> None:
    print("words on stdout")
    os.write(1, b"bytes on stdout\n")


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
    raise ValueError("no\n  good")
