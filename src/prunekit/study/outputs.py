"""What a stage has written last: its figures, which folder they belong in, and the digests of its files.

A stage whose files do not have those digests is damaged, as is one that lies in another's folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

from prunekit.digests import digest_of_file, read_json_with_digest, write_json_with_digest
from prunekit.errors import DataError

RESULT = "result.json"
"""The last file that a stage writes: where it lies, the stage is finished."""

TRAINED = "trained.safetensors"
"""In the folder of a network: its trained values."""

MODEL = "model"
"""In the folder of a cell: the pruned network, as a folder that `load_pretrained` reads."""

Rows = list[dict[str, Any]]


def is_finished(folder: Path) -> bool:
    """Whether the stage of a folder has been done."""
    return (folder / RESULT).exists()


def stage_of(folder: Path) -> str:
    """What a stage is called in its files: the end of its path, which holds the hash of its settings."""
    return "/".join(folder.parts[-3:])


def write_result(folder: Path, figures: Mapping[str, Any], files: Sequence[str]) -> None:
    """Finish a stage.

    Args:
        folder: of the stage.
        figures: what was measured.
        files: names of what else was written, below the folder.

    Raises:
        OSError: if a file cannot be read or the result cannot be written.
    """
    digests = {name: digest_of_file(folder / name) for name in files}
    write_json_with_digest(folder / RESULT, {"stage": stage_of(folder), **figures, "files": digests})


class Results:
    """What stages have measured, each read once."""

    def __init__(self) -> None:
        self._networks: dict[Path, dict[str, Any]] = {}
        self._cells: dict[Path, tuple[Rows, Rows]] = {}

    def knows(self, folder: Path) -> bool:
        """Whether the stage of a folder has been read."""
        return folder in self._networks or folder in self._cells

    def network(self, folder: Path, files: Collection[str] = ()) -> dict[str, Any]:
        """What was measured of a trained network.

        Args:
            folder: of the network.
            files: names of those that are to be there as they were written.

        Raises:
            DataError: naming the file, if the result or one of the files is missing or damaged.
            OSError: if a file cannot be read for another reason.
        """
        if folder not in self._networks:
            found = _read(folder)
            row = found.get("row")
            if not _is_row(row, _NETWORK):
                raise DataError(f"{folder / RESULT} is damaged: it holds no figures of a network")
            _check_files(folder, {name: found["files"].get(name) for name in files})
            self._networks[folder] = row
        return self._networks[folder]

    def cell(self, folder: Path) -> tuple[Rows, Rows]:
        """(rows, layers) of a cell of which all files are as they were written.

        Raises:
            DataError, OSError: as `network`.
        """
        if folder not in self._cells:
            found = _read(folder)
            rows, layers = found.get("rows"), found.get("layers")
            if not (_is_table(rows, _STEP) and rows and _is_table(layers, _LAYER)):
                raise DataError(f"{folder / RESULT} is damaged: it holds no rows of a cell")
            _check_files(folder, found["files"])
            self._cells[folder] = rows, layers
        return self._cells[folder]


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


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing, if nothing is there.

    Raises:
        OSError: if it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RESULT
    found = read_json_with_digest(path)
    stage, files = found.get("stage"), found.get("files")
    if stage != stage_of(folder):
        raise DataError(f"{path} is damaged: it is the result of {str(stage)[:200]!r}")
    if not isinstance(files, dict) or not files:
        raise DataError(f"{path} is damaged: it names no files")
    for name in files:
        if not _is_below(name):
            raise DataError(f"{path} is damaged: {name[:200]!r} names no file in its folder")
    return found


def _is_below(name: str) -> bool:
    """Whether a name leads to something inside a folder, on every system."""
    parts = name.split("/")
    odd = PureWindowsPath(name).anchor or "\\" in name or "\0" in name
    return not odd and not any(part in ("", ".", "..") for part in parts)


def _check_files(folder: Path, digests: Mapping[str, Any]) -> None:
    for name, digest in digests.items():
        try:
            found = digest_of_file(folder / name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
            raise DataError(f"{folder / name} is missing") from None
        if found != digest:
            raise DataError(f"{folder / name} is damaged or was changed: its digest is not that in {RESULT}")


# ---- what a row must hold ----------------------------------------------------------------------------------

_NETWORK = {"parameters": int, "seconds": float}
_STEP = {
    **dict.fromkeys(("step", "prunable", "kept"), int),
    **dict.fromkeys(("sparsity", "compression_ratio", "seconds"), float),
}
_LAYER = {
    **dict.fromkeys(("layer", "shape"), str),
    **dict.fromkeys(("step", "parameters", "kept"), int),
    "sparsity": float,
}


def _is_row(row: Any, columns: Mapping[str, type]) -> TypeGuard[dict[str, Any]]:
    """Whether these columns are there with their types, and all others hold numbers or nothing."""
    if not isinstance(row, dict) or not columns.keys() <= row.keys():
        return False
    for key, value in row.items():
        wanted, found = columns.get(key), type(value)
        if found is wanted or (wanted is None and (value is None or found is float)):
            continue
        if wanted in (int, str) or not (found is int or value in ("nan", "inf", "-inf")):
            return False  # JSON has no NaN and no infinity: they are texts
    return True


def _is_table(found: Any, columns: Mapping[str, type]) -> TypeGuard[Rows]:
    return isinstance(found, list) and all(_is_row(row, columns) for row in found)
