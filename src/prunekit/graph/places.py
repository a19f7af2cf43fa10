"""Lines of the network's own code: where an operator was called, and where something failed."""

from __future__ import annotations

import inspect
import linecache
import re
import sys
import traceback
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import fx

CodePlace = tuple[str, int]
"""A file and a line in it."""


_LINE = re.compile(r'File "([^"]+)", line (\d+)')


@cache
def is_machinery(filename: str) -> bool:
    """Whether a file is PyTorch's, Python's or this package's, or none at all, and so not the network's."""
    path = Path(filename)
    if not path.is_file() or {Path(torch.__file__).parent, Path(__file__).parent} & set(path.parents):
        return True
    return Path(inspect.__file__).parent in path.parents and "site-packages" not in path.parts


def place_here(above: CodeType) -> CodePlace | None:
    """The innermost line of the network's code that is under way.

    Args:
        above: of the function that called the network, above which its code does not lie.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not above:
        if not is_machinery(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


@cache
def short(place: CodePlace | None) -> str:
    """The place as ` (net.py:12)`; nothing where there is none."""
    return "" if place is None else f" ({Path(place[0]).name}:{place[1]})"


def names_a_line(reason: str) -> bool:
    """Whether a text holds a place as `short` or `line_at` gives it."""
    return bool(re.search(r"\w:\d+\)|, at line \d+ of ", reason))


def place_in(node: fx.Node) -> CodePlace | None:
    """The line of the network's code that calls a node, where the recording or the export knows."""
    place: CodePlace | None = node.meta.get("place")
    found = _LINE.findall(node.meta.get("stack_trace") or "") if place is None else []
    own = [(name, int(line)) for name, line in found if not is_machinery(name)]
    return own[-1] if own else place


def line_at(place: CodePlace | None) -> str:
    """The place with its code, as `, at line 12 of net.py: if x.sum() > 0:`; nothing where there is none."""
    if place is None:
        return ""
    code = linecache.getline(*place).strip()
    return f", at line {place[1]} of {Path(place[0]).name}" + (f": {code}" if code else "")


def place_of(error: BaseException) -> str:
    """The last line of the network's code that ran before an error, as `line_at` gives it."""
    found: list[Any] = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not is_machinery(frame.filename)
    ]
    return line_at((found[-1].filename, found[-1].lineno)) if found else ""
