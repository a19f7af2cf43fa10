"""One comparison on several problems: a study for each, in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.errors import InputError
from prunekit.permission import allowing
from prunekit.study.spec import Cell, Study, with_value

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A problem's label is also the name of its folder."""


@dataclass(frozen=True)
class Series:
    """The same methods on several datasets or models.

    In YAML it is a study with the key `problems`: labels, each with the keys of a study that are its own,
    such as `dataset`, `model` and `training`; keys may be dotted. Everything else is common to all.

    Attributes:
        name, title, question, expected: as those of a study.
        studies: an ordinary study for each problem, by label, named NAME-LABEL.
    """

    name: str
    title: str
    question: str
    expected: str
    studies: Mapping[str, Study]

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, allow: Iterable[str] = ()) -> Series:
        """The series that a mapping with the key `problems` describes.

        Args:
            values: the mapping.
            allow: modules of the user's own whose code its studies may name.

        Raises:
            InputError: if there are no problems, a problem is no mapping or has a label that cannot name a
                folder, a key is given both for all and for one, or a study is not valid, naming the problem.
        """
        common = {key: value for key, value in values.items() if key != "problems"}
        problems = values["problems"]
        if not isinstance(problems, Mapping) or not problems:
            raise InputError(f"problems: expected labels, each with settings of a study, got {problems!r}")
        with allowing(allow):
            studies = {str(label): _study(common, str(label), own) for label, own in problems.items()}
        first = next(iter(studies.values()))
        name = str(common.get("name"))
        return cls(name, str(common.get("title", name)), first.question, first.expected, studies)

    @property
    def seeds(self) -> int:
        """The most replicates that a study of it has."""
        return max(study.seeds for study in self.studies.values())

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells of all its studies."""
        return tuple(cell for study in self.studies.values() for cell in study.cells)


def _study(common: Mapping[str, Any], label: str, own: Any) -> Study:
    if not LABEL.fullmatch(label):
        raise InputError(
            f"problems: {label!r} cannot name a folder: write letters, digits, '.', '_' and '-' only"
        )
    if not isinstance(own, Mapping):
        raise InputError(f"problems: {label}: expected a mapping of settings, got {own!r}")
    twice = [key for key in own if key in common]
    if twice:
        raise InputError(f"problems: {label}: {twice[0]!r} is given for all problems and for this one")
    values = {
        **common,
        "name": f"{common.get('name')}-{label}",
        "title": f"{common.get('title', common.get('name'))}: {label}",
    }
    try:
        for key, value in own.items():
            values = with_value(values, key, value)
        return Study.parse(values)
    except InputError as error:
        raise InputError(f"problems: {label}: {error}") from error
