"""A packed file as one of the forms that hold a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prunekit.errors import DataError, naming
from prunekit.files import open_regular
from prunekit.saving.folder import SavedFolder
from prunekit.saving.packed_bytes import MAGIC, contents_in, read_packed, unpacked
from prunekit.saving.saved_files import Contents, Part, SavedFiles


class PackedFile(SavedFiles):
    """A file that `pack` wrote.

    Args:
        path: of the file.
        max_bytes: see `unpack`.

    Raises:
        DataError: as `unpack`, but for what only a model tells.
    """

    described_in = "what it says of its network"

    def __init__(self, path: str | Path, *, max_bytes: int | None = None) -> None:
        self.path = Path(path)
        self._hold(contents_of_bytes(read_packed(self.path), self.path, max_bytes))

    @classmethod
    def of(cls, contents: Contents, path: Path) -> PackedFile:
        """What stands for a file that is not written yet."""
        found = object.__new__(cls)
        found.path = path
        found._hold(contents)
        return found

    def _hold(self, contents: Contents) -> None:
        self._contents, self.description = contents, contents.description

    @property
    def holds_graph(self) -> bool:
        """See `SavedFiles`."""
        return self._contents.graph is not None

    def named(self, part: Part) -> str:
        """See `SavedFiles`."""
        return str(self.path)

    def tensors(self, *, mapped: bool = False) -> Mapping[str, Tensor]:
        """See `SavedFiles`."""
        tensors = self._contents.tensors
        return tensors if mapped else {name: value.clone() for name, value in tensors.items()}

    def graph(self) -> Mapping[str, Any]:
        """See `SavedFiles`."""
        assert self._contents.graph is not None
        return self._contents.graph


def is_packed(path: Path) -> bool:
    """Whether a file begins as `pack` writes it."""
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError, DataError):
        return False


def contents_of_bytes(data: bytes, path: Path, max_bytes: int | None = None) -> Contents:
    """What the bytes of a packed file hold.

    Raises:
        DataError: as `unpack`.
    """
    found = unpacked(data, path, max_bytes)
    with naming(str(path)):
        return contents_in(found)


def files_at(path: Path) -> SavedFiles:
    """The saved folder, or the packed file, that lies there.

    Raises:
        DataError: if it is neither, or is damaged.
    """
    return PackedFile(path) if is_packed(path) else SavedFolder(path)
