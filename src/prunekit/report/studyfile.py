"""study.json: what was asked, of which methods, with which settings."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunekit.errors import DataError
from prunekit.report.table import read_text

FORMAT = 1


class MethodNote(BaseModel):
    """What is said of one method: its recipe or recipes (one per cell), its paper, one line of summary."""

    model_config = ConfigDict(frozen=True)
    recipe: dict[str, Any] | list[dict[str, Any]]
    paper: str = ""
    summary: str = ""


class Controls(BaseModel):
    """The labels of the methods that serve as controls; None where the study has none."""

    model_config = ConfigDict(frozen=True)
    random: str | None = None
    dense_trained_as_long: str | None = None


class StudyFile(BaseModel):
    """study.json, checked. ``primary`` is the test column by which methods are compared."""

    model_config = ConfigDict(frozen=True)
    format: int
    name: str
    title: str
    question: str
    expected: str
    dataset: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    seeds: int = Field(ge=1)
    splits: Literal["one", "per_seed"] = "one"
    methods: dict[str, MethodNote]
    controls: Controls
    environment: dict[str, Any]
    command: str
    primary: Literal["test_accuracy", "test_mse"]


def read_study(path: Path) -> StudyFile:
    """Read study.json; DataError, in one line with the place, if it is damaged or of another format."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} line 1: must be an object with the key 'format'")
    if found.get("format") != FORMAT:
        raise DataError(
            f"{path}: format is {found.get('format')!r}, but this version of prunekit reads format {FORMAT}"
        )
    try:
        return StudyFile.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}") from None
