"""Options that several commands share, and output: results on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.logging import RichHandler

from prunekit.files import to_json

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of datasets; else PRUNEKIT_DATA, else cache or download."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; dotted keys, may be repeated."),
]


P = ParamSpec("P")
R = TypeVar("R")


class StoppedError(Exception):
    """Ctrl-C, with what it means for the work so far."""


def interruptible(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command end with `StoppedError` at Ctrl-C; typer would print a line of its own."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise StoppedError("stopped") from None

    return guarded


def only_results() -> redirect_stdout[Any]:
    """Send to stderr what a user's model or score prints, so that stdout holds the result alone."""
    return redirect_stdout(sys.stderr)


def print_json(values: Any) -> None:
    """The result, for a program."""
    typer.echo(to_json(values))


def log_to_stderr(level: int) -> None:
    """Show the package's log: with colours on a terminal, else as plain lines of any length."""
    console = Console(stderr=True)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("prunekit")
    logger.handlers = [handler]
    logger.setLevel(level)
