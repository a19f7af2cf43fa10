"""The files of a saved network: `model.safetensors` and `prunekit.json`, of a graph `graph.json`, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit import __version__
from prunekit.digests import (
    checked_json,
    read_json_with_digest,
    read_tensors,
    validated,
    write_json_with_digest,
    write_tensors,
)
from prunekit.errors import DataError, InputError, ModelError, shown
from prunekit.files import read_json, replacing_folder
from prunekit.saving.description import Description, StrictModel, check_names, wrong_dtype
from prunekit.saving.saved_files import Contents, Part, SavedFiles

FORMAT = 2
WEIGHTS = "model.safetensors"
DESCRIPTION = "prunekit.json"
GRAPH = "graph.json"
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Files(StrictModel):
    """The digest that each file beside the description carries."""

    weights: _Digest = Field(alias=WEIGHTS)
    graph: _Digest | None = Field(default=None, alias=GRAPH)


class FolderDescription(Description):
    """What `prunekit.json` says of a saved network.

    Attributes:
        format: of the folder.
        prunekit: the version that wrote it.
        files: the digests of the other files; that of the graph is there if the network is one.
    """

    format: Literal[2]
    prunekit: str
    files: Files


def describe(folder: Path) -> FolderDescription:
    """What `prunekit.json` says, checked.

    Raises:
        DataError: if it is missing, damaged, or of another format.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise DataError(f"{folder} holds no network saved by prunekit: there is no {DESCRIPTION}")
    values = read_json(path)
    _check_format(folder, values)
    values = checked_json(path, values)
    description = validated(FolderDescription, values, f"{path} was not written by prunekit")
    tied, sizes = description.tied, description.sizes
    check_names(path, (*description.pruned, *tied, *tied.values(), *sizes, *description.dropped))
    check_names(path, (name for each in sizes.values() for name in each))
    return description


def _check_format(folder: Path, values: Any) -> None:
    """Name the version rather than a digest that other versions did not write."""
    if not isinstance(values, dict) or "format" not in values:
        raise DataError(f"{folder / DESCRIPTION} was not written by prunekit")
    if values["format"] != FORMAT:
        raise DataError(
            f"{folder} is of format {shown(values['format'], 20)}, this prunekit reads format {FORMAT}: "
            f"it was written by prunekit {shown(values.get('prunekit'), 20)}"
        )


def read_weights(folder: Path, description: FolderDescription, *, mapped: bool = False) -> dict[str, Tensor]:
    """Everything that the file of the weights holds.

    Args:
        folder: of the files.
        description: what `prunekit.json` says.
        mapped: see `read_tensors`.

    Raises:
        DataError: if the file is missing, damaged or truncated, or a tensor has a name that cannot be printed
            or a dtype that is not in `DTYPES`.
    """
    path = folder / WEIGHTS
    tensors, _ = read_tensors(path, description.files.weights, mapped=mapped)
    check_names(path, tensors)
    wrong = wrong_dtype(tensors)
    if wrong is not None:
        raise DataError(f"{path}: {wrong}")
    return tensors


def read_graph(folder: Path, description: FolderDescription) -> dict[str, Any]:
    """The content of `graph.json`.

    Raises:
        DataError: if it is missing, damaged or truncated.
    """
    path = folder / GRAPH
    if not path.is_file():
        raise DataError(f"{folder} lacks {GRAPH}, which its network is made of")
    saved = read_json_with_digest(path, description.files.graph)
    if set(saved) != {"parameters", "buffers", "graphs"}:
        raise DataError(f"{path} was not written by prunekit")
    for part in ("parameters", "buffers"):
        if not isinstance(saved[part], dict):
            raise DataError(f"{path} was not written by prunekit: {part!r} is no mapping of names")
        check_names(path, saved[part])
    return saved


def check_saved(folder: Path) -> None:
    """Refuse a folder of which a file is missing, damaged or truncated; no network is made of it.

    Raises:
        DataError: naming the file.
    """
    description = describe(folder)
    read_weights(folder, description, mapped=True)
    if description.files.graph is not None:
        read_graph(folder, description)


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


class SavedFolder(SavedFiles):
    """A folder that `save_pretrained` wrote.

    Raises:
        DataError: if its description is missing, damaged, or of another format.
    """

    description: FolderDescription
    described_in = DESCRIPTION

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.description = describe(folder)

    @property
    def holds_graph(self) -> bool:
        """See `SavedFiles`."""
        return self.description.files.graph is not None

    def named(self, part: Part) -> str:
        """See `SavedFiles`."""
        return str(self.path / {"weights": WEIGHTS, "graph": GRAPH, "description": DESCRIPTION}[part])

    def tensors(self, *, mapped: bool = False) -> dict[str, Tensor]:
        """See `SavedFiles`."""
        return read_weights(self.path, self.description, mapped=mapped)

    def graph(self) -> dict[str, Any]:
        """See `SavedFiles`."""
        return read_graph(self.path, self.description)


def _check_safetensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse, with a `ModelError`, the one name and the dtype of `DTYPES` that safetensors does not take."""
    if "__metadata__" in tensors:
        raise ModelError("the model names '__metadata__', as safetensors names its own: give it another name")
    for name, value in tensors.items():
        if value.dtype == torch.complex128:
            raise ModelError(
                f"the network cannot be saved: {name.partition('#')[0]} is of complex128, which safetensors "
                "has not: convert it to complex64, or write one file by pack()"
            )


def write_folder(contents: Contents, folder: Path) -> None:
    """Write what is saved of a network to a folder, as a whole; an earlier save there is replaced.

    Raises:
        InputError: if the folder holds something else.
        ModelError: if safetensors has no place for a tensor.
        OSError: if it cannot be written; an earlier save is then as it was, and nothing is left behind.
    """
    check_free(folder)
    _check_safetensors(contents.tensors)
    with replacing_folder(folder) as temporary:
        digests = {WEIGHTS: write_tensors(temporary / WEIGHTS, contents.tensors)}
        if contents.graph is not None:
            digests[GRAPH] = write_json_with_digest(temporary / GRAPH, contents.graph)
        said = {
            "format": FORMAT,
            "prunekit": __version__,
            **contents.description.model_dump(exclude_defaults=True),
        }
        write_json_with_digest(temporary / DESCRIPTION, {**said, "files": digests})
