"""Limits of what settings may name: numbers that would take all memory, names that some system refuses."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunekit.errors import InputError, shown

LONGEST = 100
"""Characters of a name; what a file system takes is little more."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_folder_name(name: str) -> str:
    """A name that every system takes for the name of one folder, as it is.

    Raises:
        InputError: in one line, for any other.
    """
    fault = None if _PLAIN.fullmatch(name) else "write letters, digits, '.', '_' and '-' only"
    fault = _fault_of_any(name) or fault
    if fault is not None:
        raise InputError(f"{shown(name)} cannot name a folder: {fault}")
    return name


def check_label(label: str) -> str:
    """A label in words, of which the name of a folder is made, as it is.

    Raises:
        InputError: in one line, if it is empty, too long, or holds line ends or other control characters.
    """
    if not label.strip():
        raise InputError(f"a label is empty: {shown(label)}")
    if _CONTROL.search(label):
        raise InputError(f"{shown(label)} cannot be a label: it holds a line end or a control character")
    if len(label) > LONGEST:
        raise InputError(f"{shown(label)} cannot be a label: it has more than {LONGEST} characters")
    return label


def check_out(path: Path) -> Path:
    """A path at which results can be written, as it is; folders that exist may have any name.

    Raises:
        InputError: in one line, if a folder that would be made has a name that some system does not take.
    """
    for folder in (path, *path.parents):
        if folder.name in ("", "..") or _exists(folder):
            continue
        fault = _fault_of_any(folder.name)
        if fault is not None:
            raise InputError(f"{shown(str(path))}: {shown(folder.name)} cannot name a folder: {fault}")
    return path


def _fault_of_any(name: str) -> str | None:
    if not name:
        return "it is empty"
    if len(name) > LONGEST:
        return f"it has more than {LONGEST} characters"
    if _CONTROL.search(name):
        return "it holds a line end or a control character"
    if name.endswith((".", " ")) or name.startswith(" "):
        return "it begins with a space or ends with a space or a dot"
    if _DEVICE.fullmatch(name.partition(".")[0].rstrip(" ")):
        return "Windows takes it for a device"
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


STEPS = 100_000
"""Steps of a pruning."""

EPOCHS = 1_000_000
"""Passes of a training over its data."""

WHOLE = 1_000_000_000
"""Of anything else that is counted: optimizer steps, examples, weights."""

LARGE = 1e30
"""The largest real number that a setting multiplies with: its square is still a number."""


MAX_SIZE, MAX_LAYERS = 2**31 - 1, 1000
"""The largest size, and the most sizes or layers, that a model is built with: a file may name any."""


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number of Python, from one of Python's or NumPy's.

    Raises:
        InputError: naming it and its range, if it is something else or outside of it.
    """
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not number or not least <= int(value) <= most:
        raise InputError(
            f"{name} = {shown(value)}: a whole number of at least {least:,} and at most {most:,} is needed"
        )
    return int(value)


def size_of(what: str, size: int) -> int:
    """A size, in [1, MAX_SIZE]; `what` names it in the error."""
    return whole(what, size, 1, MAX_SIZE)


def sizes_of(what: str, sizes: Iterable[int]) -> tuple[int, ...]:
    """At most MAX_LAYERS sizes, each in [1, MAX_SIZE]; `what` names them in the error."""
    checked = tuple(sizes)
    if len(checked) > MAX_LAYERS:
        raise InputError(f"{what}: there are {len(checked):,} of them; at most {MAX_LAYERS:,} are allowed")
    return tuple(size_of(f"{what}[{place}]", size) for place, size in enumerate(checked))


def checked_seed(seed: Any) -> int:
    """A seed as a number of Python.

    Raises:
        InputError: if it is no whole number of 64 bits with a sign.
    """
    return whole("seed", seed, -(2**63), 2**63 - 1)
