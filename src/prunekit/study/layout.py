"""The folder of a study: where its files lie, its results and their tables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prunekit.digests import (
    digest_of_file,
    read_json_with_digest,
    validated,
    write_json_with_digest,
    write_sums,
)
from prunekit.errors import DataError
from prunekit.files import read_json, remove, remove_leftovers, to_csv, write_text
from prunekit.study.spec import Cell, Study
from prunekit.study_files import (
    DENSE,
    FILE_COLUMNS,
    FILES,
    FORMAT,
    LAYER_COLUMNS,
    LAYERS_CSV,
    RESULT_COLUMNS,
    RESULTS_CSV,
    STUDY_JSON,
    refuse_links,
)

STATE = "state.safetensors"
"""In the folder of a cell that is not finished: the network and the session after its last step."""

RESULT = "result.json"
"""The last file that a stage writes: where it lies, the stage is finished."""

TRAINED = "trained.safetensors"
"""In the folder of a network: its trained values."""

MODEL = "model"
"""In the folder of a cell: the pruned network, as a folder that `load_pretrained` reads."""

PACKED = "model.packed"
"""In the folder of a cell whose weights have few values: the network as one file, without dead units."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Layout:
    """Paths inside a study's folder.

    networks/<hash>/seed-<n>/   the trained networks that every method starts from, and teachers
    cells/<label>-<hash>/seed-<n>/   one recipe and replicate
    study.json, results.csv, layers.csv, SHA256SUMS, units.json, figures/, report.html
    """

    root: Path

    def network(self, study: Study, seed: int) -> Path:
        """The trained network of a seed."""
        return self.root / f"networks/{study.network_key}/seed-{seed}"

    def cell(self, cell: Cell, seed: int) -> Path:
        """One recipe for one seed."""
        return self.root / f"cells/{_plain(cell.label)}-{cell.key}/seed-{seed}"

    def name(self, path: Path) -> str:
        """What a path is called below the folder."""
        return path.relative_to(self.root).as_posix()

    def check(self) -> None:
        """Refuse a folder that holds something else, results of another version, or links.

        Raises:
            DataError: naming the folder or the file, and what to do.
        """
        if self.root.exists() and not self.root.is_dir():
            raise DataError(f"{self.root} is a file: give a folder for the results")
        refuse_links(self.root)
        if (self.root / STUDY_JSON).exists():
            self._check_format(self.root / STUDY_JSON)
        elif self.root.is_dir():
            lost_its_description = any((self.root / name).is_dir() for name in ("networks", "cells"))
            others = any(not path.name.startswith(".") for path in self.root.iterdir())
            if others and not lost_its_description:
                raise DataError(
                    f"{self.root} is not empty and holds no study: choose another folder with --out"
                )

    def _check_format(self, path: Path) -> None:
        try:
            saved = read_json(path)
        except DataError as error:
            raise DataError(
                f"{error}; remove this file and run the study again, which writes it anew"
            ) from None
        found = saved.get("format") if isinstance(saved, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{path} says format {str(found)[:40]}, this prunekit reads and writes format "
                f"{FORMAT}: choose another folder with --out"
            )

    def tidy(self) -> None:
        """Remove what killed runs have left behind; for the holder of the folder's lock."""
        for name in FILES:
            for path in self.root.glob(f".{name}.*"):
                path.unlink(missing_ok=True)
        root = os.path.realpath(self.root)
        for pattern in ("networks/*/seed-*/", "cells/*/seed-*/", "figures/"):
            for found in glob(pattern, root_dir=root):  # texts, not paths: there may be thousands
                folder = os.path.normpath(os.path.join(root, found))
                names = os.listdir(folder)
                leftovers = any(name.startswith(".") for name in names)
                stale_state = RESULT in names and STATE in names
                if not (leftovers or stale_state) or os.path.realpath(folder) != folder:
                    continue  # what a link leads to belongs to somebody else
                if leftovers:
                    remove_leftovers(Path(folder))
                if stale_state:
                    remove(Path(folder) / STATE)


@lru_cache(maxsize=1024)
def _plain(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "method"


def is_finished(folder: Path) -> bool:
    """Whether the stage of a folder has been done."""
    return (folder / RESULT).exists()


def stage_of(folder: Path) -> str:
    """What a stage is called in its files: the end of its path, which holds the hash of its settings."""
    return "/".join(folder.parts[-3:])


def write_result(folder: Path, measurements: Mapping[str, Any], files: Sequence[str]) -> None:
    """Finish a stage.

    Args:
        folder: of the stage.
        measurements: what was measured.
        files: names of what else was written, below the folder.

    Raises:
        OSError: if a file cannot be read or the result cannot be written.
    """
    digests = {name: digest_of_file(folder / name) for name in files}
    write_json_with_digest(folder / RESULT, {"stage": stage_of(folder), **measurements, "files": digests})


def check_below(name: str) -> str:
    """A name that leads to something inside a folder, on every system; ValueError for another."""
    odd = PureWindowsPath(name).anchor or "\\" in name or "\0" in name
    if odd or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name[:200]!r} names no file in its folder")
    return name


class _Row(BaseModel):
    """Columns that must be there; all others hold numbers or nothing."""

    model_config = ConfigDict(strict=True, extra="allow")
    # JSON has no NaN and no infinity: they are texts
    __pydantic_extra__: dict[str, int | float | Literal["nan", "inf", "-inf"] | None]


class _NetworkRow(_Row):
    parameters: int
    seconds: float


class _StepRow(_Row):
    step: int
    prunable: int
    kept: int
    sparsity: float
    compression_ratio: float
    seconds: float


class _LayerRow(_Row):
    layer: str
    shape: str
    step: int
    parameters: int
    kept: int
    sparsity: float


class _StageResult(BaseModel):
    stage: str
    files: dict[Annotated[str, AfterValidator(check_below)], Any] = Field(min_length=1)


class _NetworkResult(_StageResult):
    row: _NetworkRow


class _CellResult(_StageResult):
    rows: list[_StepRow] = Field(min_length=1)
    layers: list[_LayerRow]


class Results:
    """What finished stages have measured, each read once, with all its files as they were written.

    Raises:
        DataError: naming the file, if the result or one of the files is missing or damaged.
        OSError: if a file cannot be read for another reason.

    Args:
        check: is called with the path and the digest of each file that a stage has written besides; by
            default the file must lie there and have this digest.
    """

    def __init__(self, check: Callable[[Path, Any], None] | None = None) -> None:
        self._found: dict[Path, dict[str, Any]] = {}
        self._check = check or check_file

    def has(self, folder: Path) -> bool:
        """Whether a stage is finished."""
        return folder in self._found or is_finished(folder)

    def network(self, folder: Path) -> dict[str, Any]:
        """The row of a trained network."""
        row: dict[str, Any] = self._read(folder, _NetworkResult)["row"]
        return row

    def cell(self, folder: Path) -> tuple[Rows, Rows]:
        """(rows, layers) of a cell."""
        found = self._read(folder, _CellResult)
        return found["rows"], found["layers"]

    def _read(self, folder: Path, kind: type[_StageResult]) -> dict[str, Any]:
        """A result as it was written, so that its numbers are the same to the digit in the tables."""
        if folder not in self._found:
            path = folder / RESULT
            found = read_json_with_digest(path)
            said = validated(kind, found, f"{path} is damaged").stage
            if said != stage_of(folder):
                raise DataError(f"{path} is damaged: it is the result of {said[:200]!r}")
            for name, digest in found["files"].items():
                self._check(folder / name, digest)
            self._found[folder] = found
        return self._found[folder]


def check_file(path: Path, digest: Any) -> None:
    """DataError if a file is missing, or has another digest."""
    try:
        found = digest_of_file(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
        raise DataError(f"{path} is missing") from None
    if found != digest:
        raise DataError(f"{path} is damaged or was changed: its digest is not that in {RESULT}")


def write_tables(study: Study, layout: Layout, read: Results) -> None:
    """Write both tables from what is finished, dense network first, and their digests.

    Args:
        study: the study.
        layout: of its folder.
        read: what has been read of the folder so far; the rest is read now.

    Raises:
        DataError: naming the file, if a result is damaged.
    """
    common = {"study": study.name, "dataset": study.dataset.name, "model": study.model.name}
    results: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    prunable: int | None = None
    for cell in study.cells:
        for seed in range(study.seeds):
            folder = layout.cell(cell, seed)
            if not read.has(folder):
                continue
            cell_rows, cell_layers = read.cell(folder)
            where = {"method": cell.label, "cell": cell.key, "seed": seed}
            results += [{**common, **where, **row} for row in cell_rows]
            layers += [{**where, **row} for row in cell_layers]
            prunable = prunable or cell_rows[0]["prunable"]
    dense = [{**common, **row} for row in _dense_rows(study, layout, read, prunable)]
    more = tuple(column for column in FILE_COLUMNS if any(column in row for row in results))
    write_text(layout.root / RESULTS_CSV, to_csv((*RESULT_COLUMNS, *more), [*dense, *results]))
    write_text(layout.root / LAYERS_CSV, to_csv(LAYER_COLUMNS, layers))
    write_sums(layout.root, (RESULTS_CSV, LAYERS_CSV))


def _dense_rows(
    study: Study, layout: Layout, read: Results, prunable: int | None
) -> Iterable[dict[str, Any]]:
    for seed in range(study.seeds):
        folder = layout.network(study, seed)
        if read.has(folder):
            yield {
                "method": DENSE,
                "cell": study.network_key,
                "seed": seed,
                "step": 0,
                "sparsity": 0.0,
                "compression_ratio": 1.0,
                "prunable": prunable,
                "kept": prunable,
                **read.network(folder),
            }


def discard(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove what a stage that is not finished has written, the result first, but for some names.

    Raises:
        OSError: if something cannot be removed.
    """
    if folder.is_symlink() or not folder.is_dir():  # what a link leads to belongs to somebody else
        remove(folder)
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name != RESULT):
        if path.name not in keep:
            remove(path)
