"""Study suites, one comparison in several variants; named studies and suites, and those in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from prunekit.errors import InputError, naming, shown
from prunekit.files import check_folder_name
from prunekit.permission import allowing
from prunekit.settings import read_yaml
from prunekit.study.spec import Cell, Study, check_recipes, with_assignments, with_value


@dataclass(frozen=True)
class StudySuite:
    """The same methods on several datasets or models.

    In YAML it is a study with the key `variants`: labels, each with the keys of a study that are its own,
    such as `dataset`, `model` and `training`; keys may be dotted. Everything else is common to all.

    Attributes:
        name, title, question, expected: as those of a study.
        studies: an ordinary study for each variant, by label, named NAME-LABEL.
    """

    name: str
    title: str
    question: str
    expected: str
    studies: Mapping[str, Study]

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, allow: Iterable[str] = ()) -> StudySuite:
        """The suite that a mapping with the key `variants` describes.

        Args:
            values: the mapping.
            allow: modules of the user's own whose code its studies may name.

        Raises:
            InputError: if there are no variants, a variant is no mapping or has a label that cannot name a
                folder, a key is given both for all and for one, or a study is not valid, naming the variant.
        """
        common = {key: value for key, value in values.items() if key != "variants"}
        variants = values["variants"]
        if not isinstance(variants, Mapping) or not variants:
            raise InputError(
                f"variants: expected labels, each with settings of a study, got {shown(variants)}"
            )
        with allowing(allow):
            studies = _studies(common, variants)
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


def _studies(common: Mapping[str, Any], variants: Mapping[Any, Any]) -> dict[str, Study]:
    studies: dict[str, Study] = {}
    recipes = 0
    for label, own in variants.items():
        studies[str(label)] = study = _study(common, str(label), own)
        recipes += len(study.cells)
        check_recipes(recipes)
    return studies


def _study(common: Mapping[str, Any], label: str, own: Any) -> Study:
    with naming("variants"):
        check_folder_name(label)
    if not isinstance(own, Mapping):
        raise InputError(f"variants: {label}: expected a mapping of settings, got {shown(own)}")
    twice = [key for key in own if key in common]
    if twice:
        raise InputError(f"variants: {label}: {twice[0]!r} is given for all variants and for this one")
    values = {
        **common,
        "name": f"{common.get('name')}-{label}",
        "title": f"{common.get('title', common.get('name'))}: {label}",
    }
    with naming(f"variants: {label}"):
        for key, value in own.items():
            values = with_value(values, key, value)
        return Study.parse(values)


def names() -> list[str]:
    """The named studies, alphabetically."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if _is_yaml(entry.name))


def load_study(
    name: str, assignments: list[str] | None = None, *, allow: Iterable[str] = ()
) -> Study | StudySuite:
    """A named study, or the one in a YAML file; a suite if it has several variants.

    Args:
        name: a name from `names()`, or a path that ends in .yaml or .yml.
        assignments: changes of the form `training.epochs=3`.
        allow: modules of the user's own whose code the study may name; the study keeps them for its run.

    Raises:
        InputError: if there is no such study, it is not valid, or names code of a module that is not allowed.
    """
    values = with_assignments(_read(name), assignments or [])
    if "variants" in values:
        return StudySuite.parse(values, allow=allow)
    return Study.parse(values, allow=allow)


def _read(name: str) -> Mapping[str, Any]:
    if _is_yaml(name):
        return read_yaml(Path(name))
    if name not in names():
        raise InputError(
            f"there is no study {name!r}; named studies are: {', '.join(names())}; "
            "a study of your own is a path that ends in .yaml"
        )
    return read_yaml((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def _folder() -> Any:
    return resources.files("prunekit.study") / "named"


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
