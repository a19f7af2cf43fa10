"""study.json: what was asked, of which methods, with which settings."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunekit.digests import read_json_with_digest
from prunekit.errors import DataError
from prunekit.files import read_json

FORMAT = 2

Model = TypeVar("Model", bound=BaseModel)


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
    return read_description(path, StudyFile)


def read_description(path: Path, kind: type[Model]) -> Model:
    """Read study.json or series.json; DataError, in one line with the place, as `read_study`."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be an object with the key 'format'")
    if found.get("format") != FORMAT:
        raise DataError(
            f"{path}: format is {str(found.get('format'))[:40]}, but this version of prunekit reads format "
            f"{FORMAT}: run compare again, in another folder"
        )
    try:
        return kind.model_validate(read_json_with_digest(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}") from None
