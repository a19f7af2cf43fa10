"""The errors of prunekit, one clear sentence each, and the texts in them of values and of strangers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

__all__ = ["DataError", "InputError", "ModelError", "PrunekitError", "StarvedLayerWarning"]


class PrunekitError(Exception):
    """Base of every error that prunekit raises on purpose; its text is meant for the user."""


class InputError(PrunekitError, ValueError):
    """A setting, a name or an argument that cannot be accepted; raised before anything is changed."""


class DataError(PrunekitError):
    """A dataset or a file that is missing, damaged, truncated or of another kind than expected."""


class ModelError(PrunekitError):
    """A model that cannot be imported, pruned, saved or loaded as asked."""


class StarvedLayerWarning(UserWarning):
    """A layer of which a pruning leaves almost nothing, while the network keeps more; see `starved`."""


def starved(shape: Sequence[int], kept: float, share: float) -> bool:
    """Whether almost nothing is left of a layer that is not small because everything is.

    Almost nothing is under 1 % of it, a single unit, or fewer weights than it has outputs; the network keeps
    more than ten times that share.

    Args:
        shape: of the layer's weight, outputs first; or (units,).
        kept: how many of its elements are left.
        share: what is left of the whole network, in [0, 1].
    """
    size = math.prod(shape)
    few = 2 if len(shape) == 1 else shape[0]
    return kept < max(few, 0.01 * size) and 10 * kept < share * size


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Let an error of prunekit that is raised inside begin with what it is about."""
    try:
        yield
    except PrunekitError as error:
        raise type(error)(f"{place}: {error}") from error


@contextmanager
def explaining(kind: type[PrunekitError], what: Callable[[], str]) -> Iterator[None]:
    """Let an error of somebody else's code that is raised inside become one of prunekit's.

    Args:
        kind: of the error.
        what: what was being done, asked for where it failed.
    """
    try:
        yield
    except PrunekitError:
        raise
    except Exception as error:
        raise kind(f"{what()}: {said(error)}") from error


# ---- texts of messages: one line, of a bounded length ------------------------------------------------------


def brief(text: str, most: int) -> str:
    """A text in one line, cut behind `most` signs."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def shown(value: Any, most: int = 200) -> str:
    """A value as messages show it, in one line: long ones, and numbers too long to be written, are cut."""
    try:
        text = repr(value)
    except Exception:  # an object of the user's, or an integer of more than 4300 digits
        text = f"a value of the type {type(value).__name__}"
    return brief(text, most)


def instead(name: object, known: Collection[str], called: str = "names", listed_by: str = "") -> str:
    """The end of a message about a name that there is not: the nearest ones, and those that there are.

    Args:
        name: what was written.
        known: the names that there are.
        called: what they are.
        listed_by: a command that lists them, which is named in their place; for many.
    """
    wanted, plain = str(name)[:100].casefold(), {each.casefold(): each for each in known}
    near = [each for each in plain if wanted in re.findall("[a-z0-9]+", each)]
    near += [each for each in get_close_matches(wanted, plain, cutoff=0.7) if each not in near]
    *others, last = [repr(plain[each]) for each in near[:3]] or [""]
    guess = f"did you mean {', '.join(others)}{' or ' if others else ''}{last}? " if last else ""
    everything = f"{called} are: {', '.join(known) or 'none'}"
    return f"; {guess}{f'`{listed_by}` lists all {len(known)}' if listed_by else everything}"


def said(error: Exception, most: int = 300) -> str:
    """An error of somebody else's code, with its type."""
    return brief(f"{type(error).__name__}: {error}", most)


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def escaped(text: str) -> str:
    """A text in which what a terminal would obey, and does not show, is written as Python's escapes."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def plain_line(text: str) -> str:
    """A text, also a stranger's, as one line of signs that a terminal shows and does not obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))
