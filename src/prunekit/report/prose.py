"""Sentences in which names of methods stand out, wherever they are printed."""

import re
from dataclasses import dataclass
from typing import Literal

# Control characters that no name can hold once it is cleaned, so that a name is always found whole.
_OPEN, _CLOSE = "\x02", "\x03"
_NAME = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")


def named(method: str) -> str:
    """A method's name, marked as one within a sentence."""
    return f"{_OPEN}{method.replace(_OPEN, '').replace(_CLOSE, '')}{_CLOSE}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence; a 'caution' limits what the others mean. ``marked`` holds names marked by ``named``."""

    kind: Literal["result", "caution"]
    marked: str

    @property
    def text(self) -> str:
        """The plain sentence."""
        return _NAME.sub(r"\1", self.marked)

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The sentence in pieces, each with whether it is a name."""
        parts = _NAME.split(self.marked)
        return [(part, place % 2 == 1) for place, part in enumerate(parts) if part]
