"""Rows of results.csv and layers.csv, read strictly: what is wrong is named with file and line."""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunekit.digests import SUMS, check_sum
from prunekit.errors import DataError
from prunekit.files import read_bounded
from prunekit.study_files import DENSE, LAYER_COLUMNS, LAYERS_CSV, RESULT_COLUMNS, RESULTS_CSV

#: Sizes, costs and qualities: a number, or empty where it does not apply.
SIZES = ("parameters", "nonzeros", "macs", "macs_nonzero", "bytes", "seconds")
FRACTIONS = ("validation_accuracy", "test_accuracy", "test_top5")
LOSSES = ("train_loss", "validation_loss", "validation_mse", "test_loss", "test_mse")
MEASURES = (*SIZES, *FRACTIONS, *LOSSES)

MAX_BYTES = 512 << 20
"""The largest table that is read."""

#: How far a written sparsity or ratio may lie from kept and prunable: room for rounding, not for mistakes.
ROUNDING = 0.01


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results.csv: one cell, one seed, one step.

    ``sparsity`` is the fraction of the prunable weights removed, ``compression_ratio`` is prunable / kept,
    ``values`` holds every column of ``MEASURES`` (accuracies as fractions; None where the file is empty).
    """

    dataset: str
    model: str
    method: str
    cell: str
    seed: int
    step: int
    sparsity: float
    compression_ratio: float
    prunable: int
    kept: int
    values: dict[str, float | None]
    line: int


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One line of layers.csv: one target layer of one cell, seed and step; ``sparsity`` in [0, 1]."""

    method: str
    cell: str
    seed: int
    step: int
    layer: str
    shape: str
    parameters: int
    kept: int
    sparsity: float


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a CSV file that can say where it stands."""

    path: Path
    number: int
    cells: dict[str, str]

    def wrong(self, column: str, wanted: str) -> DataError:
        found = self.cells[column]
        return DataError(f"{self.path} line {self.number}: {column} must be {wanted}, not {found!r}")

    def text(self, column: str, may_be_empty: bool = False) -> str:
        if not self.cells[column] and not may_be_empty:
            raise self.wrong(column, "filled")
        return self.cells[column]

    def whole(self, column: str, least: int = 0) -> int:
        try:
            value = int(self.cells[column])
        except ValueError:
            raise self.wrong(column, "a whole number") from None
        if value < least:
            raise self.wrong(column, f"a whole number of at least {least}")
        return value

    def number_of(self, column: str, low: float, high: float) -> float:
        wanted = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        try:
            value = float(self.cells[column])
        except ValueError:
            raise self.wrong(column, wanted) from None
        if not (math.isfinite(value) and low <= value <= high):
            raise self.wrong(column, wanted)
        return value

    def measure(self, column: str) -> float | None:
        if not self.cells[column]:
            return None
        if column in FRACTIONS:
            return self.number_of(column, 0.0, 1.0)
        if column in SIZES:
            return self.number_of(column, 0.0, math.inf)
        # A run that diverged writes nan or inf: that is a result, and the page says so.
        try:
            return float(self.cells[column])
        except ValueError:
            raise self.wrong(column, "a number") from None


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


def _lines(path: Path, columns: tuple[str, ...]) -> Iterator[_Line]:
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
            yield _Line(path, reader.line_num, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: not CSV ({error})") from None


def _row(line: _Line) -> Row:
    prunable, kept = line.whole("prunable", 1), line.whole("kept", 1)
    sparsity = line.number_of("sparsity", 0.0, 1.0)
    ratio = line.number_of("compression_ratio", 1.0, math.inf)
    if kept > prunable:
        raise line.wrong("kept", f"at most prunable = {prunable}")
    if abs(sparsity - (1 - kept / prunable)) > ROUNDING:
        raise line.wrong("sparsity", f"1 - kept / prunable = {1 - kept / prunable:.4g}")
    if abs(ratio * kept / prunable - 1) > ROUNDING:
        raise line.wrong("compression_ratio", f"prunable / kept = {prunable / kept:.4g}")
    return Row(
        dataset=line.text("dataset"),
        model=line.text("model"),
        method=line.text("method"),
        cell=line.text("cell", may_be_empty=True),
        seed=line.whole("seed"),
        step=line.whole("step"),
        sparsity=sparsity,
        compression_ratio=ratio,
        prunable=prunable,
        kept=kept,
        values={column: line.measure(column) for column in MEASURES},
        line=line.number,
    )


def read_results(path: Path) -> list[Row]:
    """Read results.csv into rows, in the order of the file.

    Raises DataError naming file and line for: a missing column, a wrong number, a line that is there twice
    (same method, cell, seed and step), more than one dataset or model, no row at all, no ``dense`` row.
    """
    rows: list[Row] = []
    seen: dict[tuple[str, str, int, int], int] = {}
    for line in _lines(path, RESULT_COLUMNS):
        row = _row(line)
        key = (row.method, row.cell, row.seed, row.step)
        if key in seen:
            raise DataError(
                f"{path} line {line.number}: method {row.method!r}, cell {row.cell!r}, seed {row.seed}, "
                f"step {row.step} is already on line {seen[key]}"
            )
        if rows and (row.dataset, row.model) != (rows[0].dataset, rows[0].model):
            raise DataError(
                f"{path} line {line.number}: {row.dataset} / {row.model}, but line {rows[0].line} is "
                f"{rows[0].dataset} / {rows[0].model}; a report is of one dataset and one model"
            )
        seen[key] = line.number
        rows.append(row)
    if not rows:
        raise DataError(f"{path} line 2: no rows after the header")
    if all(row.method != DENSE for row in rows):
        raise DataError(f"{path}: no row of the method {DENSE!r}, to which the others are compared")
    return rows


def read_layers(path: Path) -> list[LayerRow]:
    """Read layers.csv into rows, in the order of the file; no rows after the header is allowed.

    Raises DataError naming file and line for a missing column, a wrong number or a line that is there twice.
    """
    rows: list[LayerRow] = []
    seen: set[tuple[str, str, int, int, str]] = set()
    for line in _lines(path, LAYER_COLUMNS):
        row = LayerRow(
            method=line.text("method"),
            cell=line.text("cell", may_be_empty=True),
            seed=line.whole("seed"),
            step=line.whole("step"),
            layer=line.text("layer"),
            shape=line.text("shape", may_be_empty=True),
            parameters=line.whole("parameters", 1),
            kept=line.whole("kept"),
            sparsity=line.number_of("sparsity", 0.0, 1.0),
        )
        if row.kept > row.parameters:
            raise line.wrong("kept", f"at most parameters = {row.parameters}")
        key = (row.method, row.cell, row.seed, row.step, row.layer)
        if key in seen:
            raise DataError(f"{path} line {line.number}: layer {row.layer!r} of this step is there twice")
        seen.add(key)
        rows.append(row)
    return rows


def require_filled(path: Path, rows: list[Row], columns: tuple[str, ...]) -> None:
    """DataError if one of the columns, by which a study's methods are compared, is empty in a row."""
    for row in rows:
        for column in columns:
            if row.values[column] is None:
                raise DataError(f"{path} line {row.line}: {column} is empty, but this study compares by it")
