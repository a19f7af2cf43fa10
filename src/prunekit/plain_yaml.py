"""YAML from anybody: plain values only, within limits. Also settings changed by texts such as `a.b=3`."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from prunekit.errors import InputError
from prunekit.settings import with_value

MAX_BYTES = 256 << 10
"""The largest YAML text that is read."""

MAX_DEPTH = 64
"""How deep lists and mappings may be nested, what anchors stand for included."""

MAX_VALUES = 25_000
"""How many values and keys there may be, those that anchors stand for counted at every place."""

MAX_TEXT = 1 << 20
"""How many characters all texts may have, those that anchors stand for counted at every place."""

MAX_DIGITS = 64
"""The longest number that is read, in characters."""

INTEGERS = range(-(2**63), 2**64)
"""The whole numbers that are read: those of 64 bits, with or without a sign."""

_TAG = "tag:yaml.org,2002:"
_NUMBERS = {f"{_TAG}int", f"{_TAG}float"}
_KEYS = {f"{_TAG}str", f"{_TAG}merge"}
_PLAIN = {*_NUMBERS, *_KEYS, f"{_TAG}null", f"{_TAG}bool", f"{_TAG}seq", f"{_TAG}map"}
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that a text cannot show: control characters but tab and line feed, and halves of characters."""


class _Size(NamedTuple):
    """How many values a node holds, itself counted, how many characters they have, and how deep they go."""

    values: int
    characters: int
    depth: int


class _Loader(yaml.SafeLoader):
    """Everything is checked while the text is read, before anchors and merge keys are filled in."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._written = 0
        self._sizes: dict[yaml.Node, _Size] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        node: yaml.Node | None
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._sizes:
                raise _error("an anchor stands for something that holds it", event.start_mark)
            return node
        self._depth += 1
        self._written += 1
        _check_size(_Size(self._written, 0, self._depth), event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            _check_node(node)
            self._sizes[node] = size = self._size(node)
            _check_size(size, node.start_mark)
        return node

    def _size(self, node: yaml.Node) -> _Size:
        if isinstance(node, yaml.ScalarNode):
            return _Size(1, len(node.value), 1)
        parts = node.value if isinstance(node, yaml.SequenceNode) else itertools.chain(*node.value)
        inside = [self._sizes[part] for part in parts]
        return _Size(
            1 + sum(size.values for size in inside),
            sum(size.characters for size in inside),
            1 + max((size.depth for size in inside), default=0),
        )

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key is a list or a mapping, not a text", key.start_mark)
            if key.tag not in _KEYS:
                raise _error(f"the key {key.value} is not a text: write it in quotes", key.start_mark)
            if (key.tag, key.value) in seen:
                raise _error(f"the key {key.value!r} is there twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            found = super().construct_object(node, deep)
        except (ValueError, LookupError):  # such as !!int word
            raise _error(f"{node.value!r} is not what its tag says", node.start_mark) from None
        if isinstance(found, int) and found not in INTEGERS:
            raise _error("a whole number has more than 64 bits", node.start_mark)
        return found


def _check_size(size: _Size, mark: Any) -> None:
    if size.depth > MAX_DEPTH:
        raise _error(f"lists and mappings are nested more than {MAX_DEPTH} deep", mark)
    if size.values > MAX_VALUES:
        raise _error(f"there are more than {MAX_VALUES:,} values, with what anchors stand for", mark)
    if size.characters > MAX_TEXT:
        raise _error(f"the texts have more than {MAX_TEXT:,} characters, with what anchors stand for", mark)


def _check_node(node: yaml.Node) -> None:
    if node.tag not in _PLAIN:
        raise _error(
            f"a value of the kind {node.tag.removeprefix(_TAG)!r} is none of the plain ones, which are "
            "texts, numbers, true, false, null, lists and mappings; a text may need quotes",
            node.start_mark,
        )
    if isinstance(node, yaml.ScalarNode):
        unseen = _UNSEEN.search(node.value)
        if unseen:
            raise _error(f"a text holds the character U+{ord(unseen[0]):04X}", node.start_mark)
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            raise _error(f"a number has more than {MAX_DIGITS} characters", node.start_mark)


def load_yaml(text: str) -> Any:
    """The plain values in a YAML text of at most `MAX_BYTES`.

    Texts, numbers, truth values, null, and lists and mappings of them; nothing else is ever made, whatever
    tags the text has.

    Raises:
        InputError: in one line, naming the line, if the text is not valid, holds values of other kinds or
            characters that cannot be seen, has a key twice, or is past a limit.
    """
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise InputError(f"there are more than {MAX_BYTES >> 10} KiB of it")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"line {line}: the character U+{error.character:04X} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        what = " ".join(", ".join(part for part in (error.context, error.problem) if part).split())
        raise InputError(place + textwrap.shorten(what, 300)) from None
    except (ValueError, OverflowError):  # an escape such as \UFFFFFFFF, which is no character
        raise InputError("a text holds an escape that stands for no character") from None


def read_yaml(source: str | Path) -> Mapping[str, Any]:
    """The mapping in a YAML text, or in the file that a `Path` names."""
    place = str(source) if isinstance(source, Path) else "the text"
    try:
        found = load_yaml(_text_of(source) if isinstance(source, Path) else source)
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror or error}") from error
    except ValueError as error:  # of load_yaml, or bytes that are no text
        raise InputError(f"{place} is not valid YAML: {error}") from None
    if not isinstance(found, Mapping):
        as_path = f"; to read a file, give pathlib.Path({found!r})" if found == source else ""
        raise InputError(f"{place}: expected a mapping of settings, got {type(found).__name__}{as_path}")
    return found


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    cut = len(content) > MAX_BYTES  # perhaps within a character; a text of this length is refused anyway
    return content.decode("utf-8", errors="replace" if cut else "strict")


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def with_assignments(values: Mapping[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Settings with some changed by texts of the form `training.epochs=3`.

    Raises:
        InputError: if a text has another form.
    """
    changed = dict(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"--set {assignment!r}: write key=value, such as training.epochs=3")
        try:
            value = load_yaml(text)
        except InputError as error:
            raise InputError(f"--set {assignment!r}: the value is not valid YAML: {error}") from None
        changed = with_value(changed, key, value)
    return changed
