"""Files in the folder of a study or a suite: their names, their columns, and what their JSON must hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    model_validator,
)

from prunekit.digests import SUMS, Model, checked_json, read_json_with_digest, validated
from prunekit.errors import DataError
from prunekit.files import check_folder_name, read_json
from prunekit.folder_lock import LOCK
from prunekit.settings import Settings

FORMAT = 2
"""The version of all of them; a folder of another version is refused, not guessed at."""

STUDY_JSON = "study.json"
"""What the study is."""

SUITE_JSON = "suite.json"
"""In the folder of a suite: what it is, and the folders of its studies."""

RESULTS_CSV = "results.csv"
"""One row per cell and step."""

LAYERS_CSV = "layers.csv"
"""One row per layer, cell and step."""

UNITS_JSON = "units.json"
"""Gain sweeps and correlations of units, where the study asks for figures of them."""

REPORT_HTML = "report.html"
"""The page made of all the others."""

FILES = (STUDY_JSON, SUITE_JSON, RESULTS_CSV, LAYERS_CSV, SUMS, UNITS_JSON, REPORT_HTML, LOCK)
"""What prunekit reads, writes and removes at the top of the folder."""

FOLDERS = {"networks": 3, "cells": 3, "figures": 1}
"""The folders there, and how many levels of them prunekit goes through by itself.

What lies deeper, the files of a saved network, is written and removed with its folder as a whole.
"""

RESULT_COLUMNS = (
    "study", "dataset", "model", "method", "cell", "seed", "step", "sparsity", "compression_ratio",
    "prunable", "kept", "parameters", "nonzeros", "macs", "macs_nonzero", "bytes", "train_loss",
    "validation_accuracy", "validation_loss", "validation_mse", "test_accuracy", "test_top5", "test_loss",
    "test_mse", "seconds",
)  # fmt: skip
FILE_COLUMNS = ("packed_bytes", "published_bytes")
"""More of them where a method gives its weights few values."""

LAYER_COLUMNS = ("method", "cell", "seed", "step", "layer", "shape", "parameters", "kept", "sparsity")

DENSE = "dense"
"""The method of the rows of the network before pruning."""

MOST_UNITS = 4096
"""How many units a layer may have to be drawn."""

UnitRow = Annotated[list[FiniteFloat], Field(min_length=1, max_length=MOST_UNITS)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Description(_Frozen):
    format: int
    name: str
    title: str
    question: str
    expected: str
    command: str


class MethodNote(_Frozen):
    """What is said of one method: its recipe or recipes (one per cell), its paper, one line of summary."""

    recipe: dict[str, Any] | list[dict[str, Any]]
    paper: str = ""
    summary: str = ""

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """The recipes, also where there is one."""
        return self.recipe if isinstance(self.recipe, list) else [self.recipe]


def part_name(recipe: Mapping[str, Any], key: str) -> Any:
    """The name of a part of a recipe as it is written; None where the recipe does not say."""
    part = recipe.get(key)
    return part.get("name") if isinstance(part, Mapping) else part


Budget = Literal["retraining", "whole"]

FROM_SCRATCH: Mapping[Budget, str] = {
    "retraining": "{}, from scratch",
    "whole": "{}, from scratch, whole budget",
}
"""The labels of the controls that train a method's final shape from new values, by their steps."""


class Controls(Settings):
    """Which methods the others are measured against.

    Attributes:
        random: the label of the method that removes at random.
        dense_trained_as_long: the label of the unpruned network with the same training budget.
    """

    random: str | None = None
    dense_trained_as_long: str | None = None


class _Arm(_Frozen):
    random_of: str | None = None
    from_scratch: bool = False


class _Arms(_Frozen):
    methods: dict[str, _Arm] = {}


class StudyFile(_Description):
    """study.json, checked. ``primary`` is the test column by which methods are compared.

    ``study`` is the study as it was asked for, of which only `random_of` and `from_scratch` are
    read.
    """

    dataset: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    seeds: int = Field(ge=1)
    splits: Literal["one", "per_seed"] = "one"
    methods: dict[str, MethodNote]
    controls: Controls
    environment: dict[str, Any]
    primary: Literal["test_accuracy", "test_mse"]
    study: _Arms = _Arms()

    @property
    def begins_untrained(self) -> bool:
        """Whether methods are given networks with their initial values."""
        return 0 in (self.training.get("epochs"), self.training.get("iterations"))

    def trains_throughout(self, label: str) -> bool:
        """Whether training goes on at all steps of a method, so that only the last is a result."""
        note = self.methods.get(label)
        recipes = [] if note is None else note.recipes
        return self.begins_untrained or any(part_name(each, "retrain") == "continued" for each in recipes)

    @property
    def random_of(self) -> dict[str, str]:
        """The labels of controls that take at random what one method takes of each layer, with its label."""
        arms = self.study.methods.items()
        return {label: arm.random_of for label, arm in arms if arm.random_of is not None}

    def from_scratch(self, budget: Budget) -> dict[str, str]:
        """The labels of controls that train the final shape of a method from new values, with its label."""
        arms = self.study.methods.items()
        return {FROM_SCRATCH[budget].format(label): label for label, arm in arms if arm.from_scratch}

    @property
    def control_of(self) -> dict[str, str]:
        """The labels of all controls of single methods, with the method's."""
        return {**self.random_of, **self.from_scratch("retraining"), **self.from_scratch("whole")}


class SuiteFile(_Description):
    """suite.json, checked."""

    variants: tuple[Annotated[str, AfterValidator(check_folder_name)], ...] = Field(min_length=1)


class GainSweep(_Frozen):
    """The error with one unit at each gain, just before it is removed.

    Attributes:
        layer: the layer that makes the unit.
        unit: its number there.
        removed: how many units were removed before it.
        errors: one for each gain.
    """

    layer: str
    unit: int = Field(ge=0)
    removed: int = Field(ge=0)
    errors: UnitRow


class UnitData(_Frozen):
    """Gain sweeps and correlations.

    Attributes:
        key: the hash of the network and of what was asked.
        error: what the errors are, in words.
        gains: those of every sweep, 0 and 1 among them.
        sweeps: in the order in which the oracle removes the units.
        correlations: by layer, Pearson's r between its units, (units, units).
    """

    key: str
    error: str
    gains: UnitRow
    sweeps: list[GainSweep] = Field(min_length=1, max_length=MOST_UNITS)
    correlations: dict[str, list[UnitRow]] = Field(min_length=1)

    @model_validator(mode="after")
    def _sizes_fit(self) -> UnitData:
        if not {0.0, 1.0} <= set(self.gains):
            raise ValueError("gains: 0 and 1 must be among them")
        for sweep in self.sweeps:
            if len(sweep.errors) != len(self.gains):
                raise ValueError(f"sweeps: {len(sweep.errors)} errors for {len(self.gains)} gains")
        for name, matrix in self.correlations.items():
            if not 1 <= len(matrix) <= MOST_UNITS or any(len(row) != len(matrix) for row in matrix):
                raise ValueError(f"correlations: {name}: must be a square matrix")
        return self


def read_study(path: Path) -> StudyFile:
    """Read study.json; DataError, in one line with the place, if it is damaged or of another format."""
    return read_description(path, StudyFile)


def read_description(path: Path, kind: type[Model]) -> Model:
    """Read study.json or suite.json; DataError, in one line with the place, as `read_study`."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be an object with the key 'format'")
    if found.get("format") != FORMAT:
        raise DataError(
            f"{path}: format is {str(found.get('format'))[:40]}, but this version of prunekit reads format "
            f"{FORMAT}: run compare again, in another folder"
        )
    return validated(kind, checked_json(path, found), str(path))


def read_checked(path: Path, kind: type[Model]) -> Model:
    """Read a JSON file with a digest; DataError, in one line with the place, if it is damaged."""
    return validated(kind, read_json_with_digest(path), str(path))


def refuse_links(root: Path, labels: Iterable[str] = ()) -> None:
    """Refuse the folder of a study or a suite in which something that is used is a symbolic link.

    The folder itself may be one: that is the user's choice. A folder that came from elsewhere may hold links
    that the user knows nothing of.

    Args:
        root: the folder.
        labels: the folders of the studies, for a suite.

    Raises:
        DataError: naming the first link.
        OSError: if a folder cannot be read.
    """
    names = (*FILES, *FOLDERS)
    tops = [*(root / name for name in names)]
    for label in labels:
        tops += [root / label, *(root / label / name for name in names)]
    for path in tops:
        if path.is_symlink():
            raise _refusal(path, root)
        if path.name in FOLDERS:
            for link in _links(path, FOLDERS[path.name]):
                raise _refusal(link, root)


def _refusal(link: Path, root: Path) -> DataError:
    return DataError(
        f"{link} is a symbolic link: prunekit reads and writes only what lies in {root} itself; remove the "
        "link, or put there what it leads to"
    )


def _links(top: Path, levels: int) -> Iterator[Path]:
    """The links in the first levels below a folder, which is none itself; none if there is no folder."""
    folders = [str(top)] if top.is_dir() else []
    for _ in range(levels):
        inside: list[str] = []
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        yield Path(entry.path)
                    elif entry.is_dir():
                        inside.append(entry.path)
        folders = inside
