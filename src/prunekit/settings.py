"""Strict, frozen settings, the same in Python and YAML: an unknown key is an error that names its place.

Also the bounds of the numbers in them, the reading of YAML, and changes by dotted keys.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import numbers
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from prunekit.errors import InputError, instead, shown
from prunekit.permission import allowing


class Settings(BaseModel):
    """A frozen set of named values. Constructing one with a wrong key or value raises `InputError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(_explain(error, type(self))) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`steps: yes` is a mistake, though Python counts True as 1."""
        found = value if isinstance(value, list | tuple) else (value,)
        if any(_is_truth(each) for each in found) and _is_of_numbers(
            cls.model_fields[str(info.field_name)].annotation
        ):
            raise ValueError(f"a number is needed here, not {shown(value)}")
        return value

    @classmethod
    def parse(cls, values: Any, *, allow: Iterable[str] = ()) -> Self:
        """The settings that a mapping from YAML or JSON describes.

        Args:
            values: the mapping, or ready settings.
            allow: modules of the user's own whose code the values may name; by default they can name none.

        Raises:
            InputError: naming the key, its place and what is allowed.
        """
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise InputError(f"{cls._label()}: expected a mapping of settings, got {shown(values)}")
        wrong = [key for key in values if not isinstance(key, str)]
        if wrong:
            raise InputError(f"{cls._label()}: the key {shown(wrong[0])} is not a text")
        with allowing(allow):
            return cls(**values)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is shown: the settings that are not the default ones."""
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if value != info.get_default(call_default_factory=True, validated_data={}):
                yield name, value

    def to_dict(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain JSON values; `parse` is its inverse."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """The settings that differ from their defaults: what the content hash is made of.

        Without the defaults, a setting that is added later leaves the hashes of earlier results as they are;
        a default must therefore never change its meaning.
        """
        return self.model_dump(mode="json", exclude_defaults=True)

    def digest(self) -> str:
        """The content hash: 12 hexadecimal digits of the SHA-256 of `identity()` in canonical JSON."""
        return digest(self.identity())

    @classmethod
    def _label(cls) -> str:
        return cls.__name__.lower()


def digest(values: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of plain JSON values, the same for any order of their keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # NumPy's own


def _is_of_numbers(annotation: Any) -> bool:
    """Whether a field holds numbers, alone or in a tuple, and no True and False."""
    leaves = {annotation}
    while any(get_args(leaf) for leaf in leaves):
        leaves = {part for leaf in leaves for part in get_args(leaf) or (leaf,)}
    return bool(leaves & {int, float}) and bool not in leaves


def _explain(error: ValidationError, cls: type[Settings]) -> str:
    """One line for the first thing that is wrong, with its place, its value and what is allowed."""
    errors = error.errors(include_url=False)
    # a key that is misspelled is missing as well: what was written explains more than what was not
    first = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    place = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = instead(first["loc"][-1], sorted(cls.model_fields), "allowed keys")
        return f"{cls._label()}: unknown key {shown(place)}{allowed}"
    if first["type"] == "missing":
        return f"{cls._label()}: the key {shown(place)} is missing"
    if not place.isprintable() or len(place) > 200:
        place = shown(place)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        repeats = not place or message.startswith(f"{place}: ")  # a part often bears its key's name
        return f"{cls._label()}: {message}" if repeats else f"{cls._label()}: {place}: {message}"
    return f"{cls._label()}: {place} = {shown(first['input'])}: {message[0].lower()}{message[1:]}"


# ---- bounds of what settings may name, which could take all memory -----------------------------------------

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


def number(name: str, value: Any, least: float, most: float) -> float:
    """A number of Python, from one of Python's or NumPy's.

    Raises:
        InputError: naming it and its range, if it is something else or outside of it.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= float(value) <= most:
        raise InputError(
            f"{name} = {shown(value)}: a number of at least {least:,g} and at most {most:,g} is needed"
        )
    return float(value)


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


# ---- YAML from anybody: plain values only, within limits ---------------------------------------------------

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


# ---- changes of single settings ----------------------------------------------------------------------------


def with_value(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested mappings in which a dotted key has another value.

    Raises:
        InputError: if the key is not words joined by dots, or runs through something that is no mapping.
    """
    first, dot, rest = _first(values, key)
    if not first or (dot and not rest):
        raise InputError(f"{key!r} is not a key: write words joined by dots, such as schedule.sparsity")
    if not rest:
        return {**values, first: value}
    inner = values.get(first, {})
    if isinstance(inner, str):
        inner = {"name": inner}
    if not isinstance(inner, Mapping):
        raise InputError(f"the key {key!r} leads through {first!r}, which holds {inner!r} and no settings")
    return {**values, first: with_value(inner, rest, value)}


def _first(values: Mapping[str, Any], key: str) -> tuple[str, str, str]:
    """The first word of a dotted key; a label with dots of its own counts as one where it is there."""
    for known in sorted(values, key=lambda known: -len(str(known))):
        if "." in str(known) and key.startswith(f"{known}."):
            return known, ".", key[len(known) + 1 :]
    return key.partition(".")


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
