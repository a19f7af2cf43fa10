"""The files of a saved network: which there are, whether they are whole, and whether they fit each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prunekit.errors import DataError, InputError
from prunekit.files import read_json

FORMAT = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "prunekit.json"
GRAPH = "graph.json"
BITS, VALUES = "#mask", "#values"
BUFFER, CONSTANT = "#buffer", "#constant"


@contextmanager
def consistent(folder: Path, file: str = WEIGHTS) -> Iterator[None]:
    """What fails inside fails because the file and the description disagree."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, DataError) as error:
        raise DataError(f"{folder / file} does not fit {DESCRIPTION}: {error}") from None


def describe(folder: Path) -> dict[str, Any]:
    """What `prunekit.json` says.

    Raises:
        DataError: if it is missing, damaged, or of another format.
    """
    if not (folder / DESCRIPTION).is_file():
        raise DataError(f"{folder} holds no network saved by prunekit: there is no {DESCRIPTION}")
    description = read_json(folder / DESCRIPTION)
    wanted = {"format", "sha256", "pruned", "tied", "architecture"}
    if not isinstance(description, dict) or not wanted <= set(description):
        raise DataError(f"{folder / DESCRIPTION} was not written by prunekit")
    if description["format"] != FORMAT:
        raise DataError(
            f"{folder} is of format {description['format']}, this prunekit reads format {FORMAT}: "
            f"it was written by prunekit {description.get('prunekit', '?')}"
        )
    return description


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description, and everything that the file of the weights holds.

    Raises:
        DataError: if one of the two is missing, damaged or truncated.
    """
    description = describe(folder)
    weights = folder / WEIGHTS
    try:
        if sha256(weights) != description["sha256"]:
            raise DataError(
                f"{weights} is damaged or truncated: its checksum is not the one in {DESCRIPTION}"
            )
        return description, load_file(weights)
    except OSError as error:
        raise DataError(f"cannot read {weights}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise DataError(f"{weights} is not a safetensors file: {error}") from None


def check_free(folder: Path) -> None:
    """Refuse, with an `InputError`, to save where something else lies."""
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder to save to")
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if inside and DESCRIPTION not in inside:
        raise InputError(f"{folder} is not empty and holds no earlier save: it will not be replaced")
    foreign = [name for name in inside if name not in (DESCRIPTION, WEIGHTS, GRAPH)]
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]} beside an earlier save: it will not be replaced")


def sha256(path: Path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
