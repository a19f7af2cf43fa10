"""Strict, frozen settings, the same in Python and YAML: an unknown key is an error that names its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from prunekit.errors import InputError, shown
from prunekit.permission import allowing


class Settings(BaseModel):
    """A frozen set of named values. Constructing one with a wrong key or value raises `InputError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
        allowed = ", ".join(sorted(cls.model_fields)) or "none"
        return f"{cls._label()}: unknown key {shown(place)}; allowed keys are: {allowed}"
    if first["type"] == "missing":
        return f"{cls._label()}: the key {shown(place)} is missing"
    if not place.isprintable() or len(place) > 200:
        place = shown(place)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        repeats = not place or message.startswith(f"{place}: ")  # a part often bears its key's name
        return f"{cls._label()}: {message}" if repeats else f"{cls._label()}: {place}: {message}"
    return f"{cls._label()}: {place} = {shown(first['input'])}: {message[0].lower()}{message[1:]}"
