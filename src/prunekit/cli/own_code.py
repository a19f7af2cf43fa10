"""The user's own code on a command line: allowed by --allow, by being typed as the model, or when asked."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.permission import Named, allowing

Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="MODULE", help="Let files name code of this module; may be repeated."),
]


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
    """Let a model be made inside whose name a person has typed, as `module:function`.

    Raises:
        InputError: if it has a colon and yet another form.
    """
    if not isinstance(name, str) or ":" not in name:
        yield
        return
    with allowing([Named.parse(name).module]):
        _reach_current_folder()
        yield


def as_options(allowed: Iterable[str] | None) -> list[str]:
    """The words of a command line that allow these modules."""
    return [f"--allow {shlex.quote(module)}" for module in allowed or ()]


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
