"""Strict, frozen settings, the same in Python and YAML: an unknown key is an error that names its place.

Also the bounds of the numbers in them, and changes by dotted keys; `prunekit.plain_yaml` reads the YAML.
"""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, get_args

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
