"""The permission to import code that a text names: none, unless the user has named its module."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from prunekit.errors import InputError

_LONGEST = 200  # of what is written as package.module:name

_MODULE = re.compile(r"[^\W\d][\w-]*(\.[^\W\d][\w-]*)*")


@dataclass(frozen=True)
class Named:
    """What a text of the form `package.module:name` names.

    Attributes:
        module: the module, with its packages.
        attribute: what of it, with dots.
    """

    module: str
    attribute: str

    @classmethod
    def parse(cls, path: str) -> Named:
        """The two halves of a text.

        Raises:
            InputError: if it has another form.
        """
        module, _, attribute = path[:_LONGEST].partition(":")
        identifiers = all(step.isidentifier() for step in attribute.split("."))
        if len(path) > _LONGEST or not _MODULE.fullmatch(module) or not identifiers:
            raise InputError(f"{path[:_LONGEST]!r} is not of the form package.module:name")
        return cls(module, attribute)

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


Ask = Callable[[Named], bool]
"""Whether the module of something may be imported."""


class Permission:
    """The modules whose code may be imported and called, and who decides about the others.

    An answer holds for as long as the permission is there, so that nobody is asked twice about a module.

    Args:
        modules: names of modules; that of a package stands for everything in it.
        ask: who decides about others; by default none of them may be imported.

    Raises:
        InputError: if something is not the name of a module.
    """

    def __init__(self, modules: Iterable[str] = (), ask: Ask | None = None) -> None:
        self._modules = frozenset(_checked(modules))
        self._ask = ask
        self._answers: dict[str, bool] = {}

    @property
    def used(self) -> tuple[str, ...]:
        """The modules that it has been asked for so far and has allowed, sorted."""
        return tuple(sorted(module for module, allowed in self._answers.items() if allowed))

    def covers(self, named: Named) -> bool:
        """Whether the module of something may be imported."""
        if named.module not in self._answers:
            self._answers[named.module] = self._decide(named)
        return self._answers[named.module]

    def _decide(self, named: Named) -> bool:
        if not self._modules.isdisjoint(_with_packages(named.module)):
            return True
        return self._ask is not None and self._ask(named)


_current: ContextVar[Permission | None] = ContextVar("permission", default=None)


def current() -> Permission:
    """The permission of the innermost `allowing`; outside of any, one that allows nothing."""
    return _current.get() or Permission()


@contextmanager
def allowing(modules: Iterable[str] = (), *, ask: Ask | None = None) -> Iterator[Permission]:
    """Let settings that are read inside name code of these modules, besides what is allowed outside.

    Args:
        modules: names of modules; that of a package stands for everything in it.
        ask: who decides about others; by default what is outside.

    Raises:
        InputError: if something is not the name of a module.
    """
    permission = Permission(modules, ask or current().covers)
    token = _current.set(permission)
    try:
        yield permission
    finally:
        _current.reset(token)


def import_object(path: str) -> Any:
    """What `package.module:name` names, if its module may be imported.

    Raises:
        InputError: before any import, if the module is not allowed; if it cannot be imported, holds no such
            name, or the name leads into another module.
    """
    named = Named.parse(path)
    if not current().covers(named):
        raise InputError(
            f"{path!r} would import the module {named.module} and call its {named.attribute}, which nobody "
            f"has allowed: if you trust this code, add --allow {named.module} on the command line, "
            f'allow=["{named.module}"] in Python'
        )
    try:
        found: Any = importlib.import_module(named.module)
    except Exception as error:  # an import runs the user's code: whatever it raises is the user's to see
        raise InputError(
            f"cannot import {named.module!r} of {path!r}: {type(error).__name__}: {error}"
        ) from error
    for step in named.attribute.split("."):
        try:
            found = getattr(found, step)
        except AttributeError:
            raise InputError(f"the module {named.module!r} has no {named.attribute!r}") from None
        if isinstance(found, ModuleType):  # what a module has imported itself was not allowed with it
            raise InputError(f"{path!r} leads into the module {found.__name__}: write {found.__name__}:name")
    return found


def makes(found: Any, result: type) -> bool:
    """Whether something is a class of `result`, or a function that is annotated to return one."""
    return any(isinstance(each, type) and issubclass(each, result) for each in (found, _returned(found)))


def _returned(function: Any) -> Any:
    """What a function is annotated to return; None for what is no function, or has no such annotation."""
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        return None
    try:  # the annotation of the result alone: those of arguments may be for type checkers only
        written = SimpleNamespace(__annotations__={"return": function.__annotations__["return"]})
        return typing.get_type_hints(written, inspect.unwrap(function).__globals__)["return"]
    except Exception:  # an annotation is code, too
        return None


def _checked(modules: Iterable[str]) -> Iterator[str]:
    for module in [modules] if isinstance(modules, str) else modules:
        if not isinstance(module, str) or not _MODULE.fullmatch(module):
            raise InputError(
                f"{module!r} cannot be allowed: write the name of a module alone, such as my_models"
            )
        yield module


def _with_packages(module: str) -> set[str]:
    """The module, its package, the package of that, and so on."""
    steps = module.split(".")
    return {".".join(steps[:length]) for length in range(1, len(steps) + 1)}
