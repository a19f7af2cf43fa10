"""The command line: commands that are each one call into the package, and what a person sees of errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from prunekit.cli.lazy import LazyCommands
from prunekit.cli.options import HELP_MARKUP, StoppedError, log_to_stderr
from prunekit.errors import PrunekitError, plain_line

# typer depends on click or, lately, carries it inside itself: its own exception leads to the base in both
UsageProblem: Any = typer.BadParameter.__mro__[2]

MOST_SHOWN = 50
"""Failures of a study that are listed; the log has named them all."""

app = typer.Typer(
    name="prunekit",
    cls=LazyCommands,
    help="Make trained neural networks smaller, and compare the ways to do it.",
    epilog="Try: prunekit compare digits-quick  (a minute, no download)",
    no_args_is_help=True,
    rich_markup_mode=HELP_MARKUP,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from prunekit import __version__

        typer.echo(f"prunekit {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log only what goes wrong.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log in detail.")] = False,
) -> None:
    log_to_stderr(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Run the command line; bad input ends with one line and exit code 2, a failed cell with 1."""
    # Python puts the current folder first on the path of workers, whatever lies there; they get ours instead
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of a command line."""
    try:
        result = app(args=arguments, prog_name="prunekit", standalone_mode=False)
        sys.stdout.flush()
    except UsageProblem as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help itself
            error.show()
            return 2
        return _complain(error.format_message(), 2)
    except PrunekitError as error:
        failures = getattr(error, "failures", None)  # of a study, whose own error loads PyTorch
        if failures is not None:
            _show_failures(failures)
        return _complain(str(error), 2 if failures is None else 1)
    except BrokenPipeError:  # who reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    except StoppedError as error:
        return _complain(str(error), 130)
    return int(result or 0)


def _show_failures(failures: Sequence[Any]) -> None:
    """A table of what failed and why, where it is more than the message says."""
    if len(failures) < 2:
        return
    from prunekit.measure import plain_table

    table = plain_table()
    table.add_column("not done", no_wrap=True)
    table.add_column("why", ratio=1)
    for failure in failures[:MOST_SHOWN]:
        table.add_row(*(escape(plain_line(text)) for text in (failure.name, failure.message)))
    if len(failures) > MOST_SHOWN:
        table.add_row(f"and {len(failures) - MOST_SHOWN:,} more", "")
    Console(stderr=True, highlight=False).print(table)


def _complain(message: str, code: int) -> int:
    typer.echo(f"prunekit: error: {plain_line(message)}", err=True)
    return code
