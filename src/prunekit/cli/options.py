"""Options that several commands share, and what is behind them: output, and leave for the user's own code.

Results go to stdout, everything else to stderr. The user's own code runs if it is allowed by `--allow`, by
being typed as the model, or when asked.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.logging import RichHandler

from prunekit.files import to_json
from prunekit.permission import Named, allowing

HELP_MARKUP: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= 60 else None
"""How help is written: in boxes, or plainly where the boxes would cut the names of options."""

Model = Annotated[
    str,
    typer.Argument(help="A saved folder or packed file, a model's name, module:function, {name: mlp, ...}."),
]
Data = Annotated[
    str | None, typer.Option(help="Dataset to test on, or module:function; gives the shapes too.")
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of datasets; else PRUNEKIT_DATA, else cache or download."),
]
Weights = Annotated[Path | None, typer.Option(help="Weights: safetensors, or a saved folder or packed file.")]
InputShape = Annotated[
    str | None, typer.Option(help="Shape of one example, such as 3,32,32, without a dataset.")
]
Outputs = Annotated[
    int, typer.Option(min=1, help="Number of outputs, without a dataset, of a model that takes it.")
]
Tokens = Annotated[
    int | None, typer.Option(min=1, help="Inputs are whole numbers below this one, such as tokens of a text.")
]
Ignore = Annotated[
    list[str] | None, typer.Option(help="A layer, or pattern, that keeps its sizes; may be repeated.")
]
Residual = Annotated[bool, typer.Option("--residual", help="Let residual streams lose units, too.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; dotted keys, may be repeated."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="MODULE", help="Let files name code of this module; may be repeated."),
]
MaxBytes = Annotated[
    int | None, typer.Option(min=0, help="What the tensors of a packed file may take in memory, in bytes.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def as_options(reason: str) -> str:
    """A reason in which the arguments of functions are written as the options of commands."""
    return reason.replace("(residual=True)", "(--residual)").replace("(ignore)", "(--ignore)")


# ---- output ------------------------------------------------------------------------------------------------

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


def table_console() -> Console:
    """Prints tables at the 80 columns that they are made for, also on a narrower terminal.

    There the terminal wraps the lines; a table that is made to fit loses columns and digits.
    """
    console = Console(highlight=False)
    return Console(highlight=False, width=max(console.width, 80))


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


# ---- the user's own code -----------------------------------------------------------------------------------


@contextmanager
def own_code(allowed: Iterable[str] | None) -> Iterator[None]:
    """Let files that are read inside name code of these modules; a person is asked about the folder's own.

    Raises:
        InputError: if something is not the name of a module.
    """
    with allowing(allowed or (), ask=_ask):
        if allowed:
            _reach_current_folder()
        yield


@contextmanager
def typed(name: Any) -> Iterator[None]:
    """Let a model or a dataset be made inside whose name a person has typed, as `module:function`.

    Raises:
        InputError: if it has a colon and yet another form.
    """
    if not isinstance(name, str) or ":" not in name:
        yield
        return
    with allowing([Named.parse(name).module]):
        _reach_current_folder()
        yield


def file_in(folder: Path, module: str) -> Path | None:
    """The file of a folder that importing a module would run; found without importing anything.

    None if there is none, or if Python finds another module of that name first.
    """
    top, *rest = module.split(".")
    first = PathFinder.find_spec(top, [str(folder)])
    if first is None or not _is_found_first(top, first):
        return None
    spec: ModuleSpec | None = first
    for step in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # by the last step alone: under its whole name a folder without __init__.py asks for what it is in
        spec = PathFinder.find_spec(step, list(spec.submodule_search_locations))
    if spec is None:
        return None
    return Path(spec.origin or next(iter(spec.submodule_search_locations or [str(folder)])))


def _is_found_first(top: str, spec: ModuleSpec) -> bool:
    """Whether nothing else of this name comes before what was found in a folder."""
    try:
        found = importlib.util.find_spec(top)
    except ValueError:  # a module without a specification, such as __main__
        return False
    return found is None or found.origin == spec.origin


def _ask(named: Named) -> bool:
    """The word of the person at the terminal, if there is one; only for code of the current folder."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    file = file_in(Path.cwd(), named.module)
    if file is None:
        return False
    typer.echo(f"{named} names code of this folder, which would be run: ", err=True, nl=False)
    typer.echo(f"import {file}, call {named.attribute}. Allow it? [y/N] ", err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        return False
    _reach_current_folder()
    return True


def _reach_current_folder() -> None:
    """Let modules of the current folder be found, after all others: none of them hides a library."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
