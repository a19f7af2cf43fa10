"""What there is of each sequence of the calibration text at a block, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from prunekit.digests import digest_of_file
from prunekit.errors import DataError
from prunekit.files import remove, replacing

Medium = Literal["memory", "disk"]
"""Where activations are kept: all of them in memory, or on disk but for the sequence that is looked at."""


class StreamFile(Sequence[Tensor]):
    """Activations (1, length, width) by sequence, each read from the file when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __len__(self) -> int:
        """How many sequences."""
        return len(np.load(self._path, mmap_mode="r"))

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor]:
        """A copy in memory."""
        mapped = np.load(self._path, mmap_mode="r")
        if isinstance(place, slice):
            return [torch.from_numpy(np.array(each)[None]) for each in mapped[place]]
        return torch.from_numpy(np.array(mapped[place])[None])


@dataclass(frozen=True)
class SequenceBatches:
    """Sequences as batches of one example, for `prune`.

    Attributes:
        streams: (1, length, width) the activations before a block.
        gradients: likewise, targets for a loss of what the block gives; without them targets mean nothing.
    """

    streams: Sequence[Tensor]
    gradients: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        """How many sequences."""
        return len(self.streams)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One at a time."""
        if self.gradients is not None:
            return zip(self.streams, self.gradients, strict=True)
        return ((stream, torch.zeros(len(stream), dtype=torch.long)) for stream in self.streams)


@dataclass(frozen=True)
class StreamStore:
    """The activations before the block that is next, and files to go on from.

    Attributes:
        folder: of the files, whose names are hidden.
        medium: where activations are looked at; an interrupted run may go on with the other one.
        count: of sequences.
        what: there is of each sequence, for the names of files.
    """

    folder: Path
    medium: Medium
    count: int
    what: str = "stream"

    def kept(self, block: int, streams: Iterable[Tensor]) -> Sequence[Tensor]:
        """Activations before a block, each worked out and put away before the next."""
        if self.medium == "memory":
            return list(streams)
        self._write(block, streams)
        return StreamFile(self._path(block))

    def saved(self, block: int, streams: Sequence[Tensor]) -> dict[str, str]:
        """Have them in their file; its name, with its digest."""
        if self.medium == "memory":
            self._write(block, streams)
        return {self.file(block): digest_of_file(self._path(block))}

    def read(self, block: int, digests: Mapping[str, str]) -> Sequence[Tensor]:
        """Those of a file.

        Raises:
            DataError: if it is missing, or another one than was saved.
        """
        path = self._path(block)
        if not path.is_file() or digest_of_file(path) != digests.get(path.name):
            raise DataError(f"{path} is missing or damaged: remove {self.folder} and begin again")
        found = StreamFile(path)
        return found if self.medium == "disk" else list(found)

    def remove(self, block: int) -> None:
        """Forget them."""
        remove(self._path(block))

    def clear(self) -> None:
        """Forget what a run that was killed has left, too."""
        for path in self.folder.glob(f".*{self.what}-*"):
            remove(path)

    def file(self, block: int) -> str:
        """The name of the file of a block."""
        return f".{self.what}-{block}.npy"

    def _path(self, block: int) -> Path:
        return self.folder / self.file(block)

    def _write(self, block: int, streams: Iterable[Tensor]) -> None:
        """As one array (sequences, length, width) in the format of NumPy."""
        with replacing(self._path(block)) as temporary, temporary.open("wb") as file:
            for stream in streams:
                values = stream.detach().cpu().contiguous().numpy()
                if not file.tell():
                    header = np.lib.format.header_data_from_array_1_0(values)
                    header["shape"] = (self.count, *values.shape[1:])
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(values.data)
