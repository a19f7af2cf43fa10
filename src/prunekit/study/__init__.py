"""Studies: recipes x seeds on a dataset and a model, resumable, with tables and a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from prunekit.errors import InputError, instead
from prunekit.plain_yaml import read_yaml, with_assignments
from prunekit.study.jobs import Executor
from prunekit.study.layout import Layout
from prunekit.study.pool import LocalPool
from prunekit.study.ray_cluster import RayCluster
from prunekit.study.run import StudyError, run_study
from prunekit.study.spec import Cell, Method, Study, StudySuite

__all__ = [
    "Cell",
    "Executor",
    "Layout",
    "LocalPool",
    "Method",
    "RayCluster",
    "Study",
    "StudyError",
    "StudySuite",
    "load_study",
    "names",
    "run_study",
]


def names() -> list[str]:
    """The named studies, alphabetically."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if _is_yaml(entry.name))


def load_study(
    name: str | Path, assignments: list[str] | None = None, *, allow: Iterable[str] = ()
) -> Study | StudySuite:
    """A named study, or the one in a YAML file; a suite if it has several variants.

    Args:
        name: a name from `names()`, or a path that ends in .yaml or .yml.
        assignments: changes of the form `training.epochs=3`.
        allow: modules of the user's own whose code the study may name; the study keeps them for its run.

    Raises:
        InputError: if there is no such study, it is not valid, or names code of a module that is not allowed.
    """
    values = with_assignments(_read(str(name)), assignments or [])
    if "variants" in values:
        return StudySuite.parse(values, allow=allow)
    return Study.parse(values, allow=allow)


def _read(name: str) -> Mapping[str, Any]:
    if _is_yaml(name):
        return read_yaml(Path(name))
    if name not in names():
        raise InputError(
            f"there is no study {name!r}{instead(name, names(), listed_by='prunekit compare --list')}, and a "
            "study of your own is a path that ends in .yaml"
        )
    return read_yaml((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def _folder() -> Any:
    return resources.files("prunekit.study") / "named"


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
