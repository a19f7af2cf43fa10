"""Datasets of the user's own: the function that a text names, and the settings that it asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from prunekit.errors import InputError
from prunekit.permission import import_object, makes

ARGUMENTS = ("validation", "test", "seed", "data_dir")
"""What a function may ask for by the names of its arguments."""


def find_function(path: str, result: type) -> Callable[..., Any]:
    """The function that `package.module:function` names, which says that it gives a dataset.

    Args:
        path: the text.
        result: the class that it must be annotated to return.

    Raises:
        InputError: if its module is not allowed or cannot be imported, if it is not annotated so, or if it
            needs an argument that is none of `ARGUMENTS`.
    """
    found = import_object(path)
    if not inspect.isroutine(found) or not makes(found, result):
        name = getattr(found, "__name__", "function")
        raise InputError(
            f"{path!r} is not called, because nothing says that it gives a dataset: write a function whose "
            f"annotation does (def {name}(...) -> {result.__module__.rpartition('.')[0]}.{result.__name__})"
        )
    for name, parameter in inspect.signature(found).parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if not optional and (name not in ARGUMENTS or parameter.kind is parameter.POSITIONAL_ONLY):
            raise InputError(
                f"{path}: it needs the argument {name!r}; it may ask for {', '.join(ARGUMENTS)}, by name"
            )
    return found


def asked_for(function: Callable[..., Any]) -> set[str]:
    """Which of `ARGUMENTS` a function has."""
    return set(ARGUMENTS).intersection(inspect.signature(function).parameters)
