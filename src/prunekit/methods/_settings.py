"""What is said of a setting that a method cannot take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

from prunekit.errors import InputError
from prunekit.messages import shown
from prunekit.recipe import Recipe

Taken = ParamSpec("Taken")


def method(function: Callable[Taken, Recipe]) -> Callable[Taken, Recipe]:
    """A method whose errors name its own setting, and not only that of the part that refused the value."""

    @wraps(function)
    def explained(*args: Taken.args, **kwargs: Taken.kwargs) -> Recipe:
        try:
            return function(*args, **kwargs)
        except (InputError, TypeError, ArithmeticError) as error:
            try:
                given = inspect.signature(function).bind(*args, **kwargs).arguments
            except TypeError:
                raise error from None  # a call that Python itself refuses
            blamed = "".join(f"{name} = {shown(given[name])}: " for name in _blamed(function, given))
            raise InputError(f"method {function.__name__}: {blamed}{error}") from None

    return explained


def _blamed(function: Callable[..., Recipe], given: Mapping[str, Any]) -> list[str]:
    """The setting without which there is no error, as far as it is one alone."""
    for name in given:
        try:
            function(**{key: value for key, value in given.items() if key != name})
        except (InputError, TypeError, ArithmeticError):
            continue
        return [name]
    return []
