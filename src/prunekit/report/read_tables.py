"""Rows of results.csv and layers.csv, read strictly: what is wrong is named with file and line."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from prunekit.digests import SUMS, check_sum
from prunekit.errors import DataError, shown
from prunekit.files import read_bounded
from prunekit.study_files import DENSE, LAYER_COLUMNS, LAYERS_CSV, RESULT_COLUMNS, RESULTS_CSV

MAX_BYTES = 512 << 20
"""The largest table that is read."""

ROUNDING = 0.01
"""How far a written sparsity or ratio may lie from kept and prunable: room for rounding, not for mistakes."""

Text = Annotated[str, Field(min_length=1)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]

_Empty = BeforeValidator(lambda text: text or None)
Size = Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, _Empty]
Share = Annotated[Fraction | None, _Empty]
Loss = Annotated[float | None, _Empty]
"""A run that diverged writes nan or inf: that is a result, and the page says so."""


class _CellStep(BaseModel):
    """What both tables say of a step: of which cell and seed it is, and how much is left."""

    model_config = ConfigDict(frozen=True)
    method: Text
    cell: str
    seed: Number
    step: Number
    kept: Number
    sparsity: Fraction


class Sizes(BaseModel):
    """Sizes and costs of a network; None where a column is empty, since it does not apply."""

    model_config = ConfigDict(frozen=True)
    parameters: Size
    nonzeros: Size
    macs: Size
    macs_nonzero: Size
    bytes: Size
    seconds: Size


class Measures(Sizes):
    """Sizes, costs and qualities of a network; None where a column is empty, since it does not apply."""

    validation_accuracy: Share
    test_accuracy: Share
    test_top5: Share
    train_loss: Loss
    validation_loss: Loss
    validation_mse: Loss
    test_loss: Loss
    test_mse: Loss
    packed_bytes: Size = None
    published_bytes: Size = None


MEASURES = tuple(Measures.model_fields)


class Row(_CellStep, Measures):
    """One line of results.csv: one cell, one seed, one step.

    ``sparsity`` is the fraction of the prunable weights (or units) removed. ``compression_ratio`` is prunable
    over kept weights, or, where units were removed, all parameters over those that are left.
    """

    line: int
    dataset: Text
    model: Text
    compression_ratio: Ratio
    prunable: Positive
    kept: Positive

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        removed, ratio = 1 - self.kept / self.prunable, self.prunable / self.kept
        if self.kept > self.prunable:
            raise ValueError(f"kept must be at most prunable = {self.prunable}, not {self.kept}")
        if abs(self.sparsity - removed) > ROUNDING:
            raise ValueError(f"sparsity must be 1 - kept / prunable = {removed:.4g}, not {self.sparsity}")
        of_units = self.parameters / self.nonzeros if self.parameters and self.nonzeros else 1.0
        fits = 1 - ROUNDING <= self.compression_ratio <= of_units * (1 + ROUNDING)
        if not fits and abs(self.compression_ratio / ratio - 1) > ROUNDING:
            raise ValueError(
                f"compression_ratio must be prunable / kept = {ratio:.4g}, not {self.compression_ratio}"
            )
        return self


class LayerRow(_CellStep):
    """One line of layers.csv: one target layer of one cell, seed and step; ``sparsity`` in [0, 1]."""

    layer: Text
    shape: str = Field(pattern=r"^\d{1,18}(x\d{1,18})*$")
    parameters: Positive

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        if self.kept > self.parameters:
            raise ValueError(f"kept must be at most parameters = {self.parameters}, not {self.kept}")
        return self


Found = TypeVar("Found", Row, LayerRow)


def check_tables(folder: Path) -> bool:
    """Whether there are digests beside both tables, and they are those of the tables.

    Raises DataError, naming the file, for a table that is not the one that was written.
    """
    if not (folder / SUMS).exists():
        return False
    for path in (folder / RESULTS_CSV, folder / LAYERS_CSV):
        try:
            known = check_sum(path)
        except DataError as error:
            raise DataError(f"{error}; run compare again, which writes it anew") from None
        if not known and path.exists():
            raise DataError(
                f"{folder / SUMS} is damaged: it says nothing of {path.name}; run compare again, which "
                "writes it anew"
            )
    return True


def read_text(path: Path) -> str:
    """Return the file's text; DataError if it cannot be read, is not UTF-8 or is empty."""
    try:
        text = read_bounded(path, MAX_BYTES, "a table").decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not a UTF-8 text file") from None
    if not text.strip():
        raise DataError(f"{path} line 1: the file is empty")
    return text


def _lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next(reader)
        missing = [column for column in columns if column not in header]
        if missing:
            raise DataError(f"{path} line 1: missing columns: {', '.join(missing)}")
        if len(set(header)) < len(header):
            raise DataError(f"{path} line 1: a column is there twice")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path} line {reader.line_num}: {len(cells)} cells where the header has {len(header)}"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: not CSV ({error})") from None


def _rows(path: Path, columns: Sequence[str], kind: type[Found], key: Sequence[str]) -> list[Found]:
    """The rows of a table, of which no two have the same values in the columns of the key."""
    rows: list[Found] = []
    seen: dict[str, int] = {}
    for line, cells in _lines(path, columns):
        try:
            row = kind.model_validate({**cells, "line": line})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            cell = f"{first['loc'][0]} = {shown(first['input'])}: " if first["loc"] else ""
            raise DataError(
                f"{path} line {line}: {cell}{first['msg'].removeprefix('Value error, ')}"
            ) from None
        name = ", ".join(f"{column} {getattr(row, column)!r}" for column in key)
        if name in seen:
            raise DataError(f"{path} line {line}: {name} is already on line {seen[name]}")
        seen[name] = line
        rows.append(row)
    return rows


def read_results(path: Path) -> list[Row]:
    """Read results.csv into rows, in the order of the file.

    Raises DataError naming file and line for: a missing column, a wrong number, a line that is there twice
    (same method, cell, seed and step), more than one dataset or model, no row at all, no ``dense`` row.
    """
    rows = _rows(path, RESULT_COLUMNS, Row, ("method", "cell", "seed", "step"))
    if not rows:
        raise DataError(f"{path} line 2: no rows after the header")
    for row in rows:
        if (row.dataset, row.model) != (rows[0].dataset, rows[0].model):
            raise DataError(
                f"{path} line {row.line}: {row.dataset} / {row.model}, but line {rows[0].line} is "
                f"{rows[0].dataset} / {rows[0].model}; a report is of one dataset and one model"
            )
    if all(row.method != DENSE for row in rows):
        raise DataError(f"{path}: no row of the method {DENSE!r}, to which the others are compared")
    return rows


def read_layers(path: Path) -> list[LayerRow]:
    """Read layers.csv into rows, in the order of the file; no rows after the header is allowed.

    Raises DataError naming file and line for a missing column, a wrong number or a line that is there twice.
    """
    return _rows(path, LAYER_COLUMNS, LayerRow, ("method", "cell", "seed", "step", "layer"))


def require_filled(path: Path, rows: list[Row], columns: tuple[str, ...]) -> None:
    """DataError if one of the columns, by which a study's methods are compared, is empty in a row."""
    for row in rows:
        for column in columns:
            if getattr(row, column) is None:
                raise DataError(f"{path} line {row.line}: {column} is empty, but this study compares by it")
