"""Reading what stages have written, with errors that say which file is damaged and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunekit.errors import DataError
from prunekit.files import read_json

RESULT = "result.json"
"""The last file that a stage writes: where it lies, the stage is finished."""


def is_finished(folder: Path) -> bool:
    """Whether the stage of a folder has been done."""
    return (folder / RESULT).exists()


def read_network(folder: Path) -> dict[str, Any]:
    """What was measured of a trained network.

    Raises:
        DataError: naming the file and what to do, if it is damaged.
    """
    found = _read(folder)
    if not isinstance(found, dict) or "parameters" not in found:
        raise DataError(f"{folder / RESULT} is damaged: it holds no figures of a network; {_remedy(folder)}")
    return found


def read_cell(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows, layers) of a cell.

    Raises:
        DataError: naming the file and what to do, if it is damaged.
    """
    found = _read(folder)
    if isinstance(found, dict):
        rows, layers = found.get("rows"), found.get("layers")
        if _is_table(rows) and rows and _is_table(layers):
            return rows, layers
    raise DataError(f"{folder / RESULT} is damaged: it holds no rows of a cell; {_remedy(folder)}")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and the session that is written beside them, empty where there is none.

    Raises:
        DataError: naming the file and what to do, if it is missing, damaged or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            return tensors, json.loads((file.metadata() or {}).get("session", "{}"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {_remedy(path.parent)}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or truncated ({error}); {_remedy(path.parent)}") from None


def _read(folder: Path) -> Any:
    try:
        return read_json(folder / RESULT)
    except DataError as error:
        raise DataError(f"{error}; {_remedy(folder)}") from None


def _is_table(found: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(found, list) and all(isinstance(row, dict) for row in found)


def _remedy(folder: Path) -> str:
    return f"remove the folder {folder} and run the study again, which repeats only what was in it"
