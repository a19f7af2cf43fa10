"""A network's values in safetensors files that are read a few tensors at a time, and their index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunekit.digests import digest_of_file, digest_of_tensors
from prunekit.errors import DataError, InputError
from prunekit.files import read_json, replacing, to_json, write_text

INDEX = "model.safetensors.index.json"
"""The file that says which tensor lies in which file; its form is that of the package transformers."""

WHOLE = "model.safetensors"
"""The one file of a network that has no index."""

SAMPLE = 256
"""Entries of each tensor that tell one training of a network from another."""


@dataclass(frozen=True)
class Shards:
    """The files of a network.

    Attributes:
        folder: where they lie.
        file_of: by tensor, the name of its file there.
    """

    folder: Path
    file_of: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> Shards:
        """Those of a folder, as `save_pretrained` of transformers writes it.

        Raises:
            InputError: if there is neither an index nor a whole file.
            DataError: if the index is damaged, or names a file that is not in the folder.
        """
        if (folder / INDEX).is_file():
            return cls(folder, _checked(folder, read_json(folder / INDEX)))
        if (folder / WHOLE).is_file():
            with _opened(folder / WHOLE) as file:
                return cls(folder, dict.fromkeys(file.keys(), WHOLE))
        raise InputError(f"{folder}: neither {INDEX} nor {WHOLE} is there")

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some of the tensors, each file opened once.

        Raises:
            DataError: if one is not there, or a file is damaged.
        """
        found: dict[str, Tensor] = {}
        for file, wanted in self._by_file(names).items():
            with _opened(self.folder / file) as opened:
                _check_there(self.folder / file, opened, wanted)
                for name in wanted:
                    found[name] = opened.get_tensor(name)
        return found

    def sizes(self, names: Iterable[str]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and types of some tensors, by the headers alone.

        Raises:
            DataError: if one is not there or of a type that is not in `TYPES`, or a file is damaged.
        """
        found = {}
        for file, wanted in self._by_file(names).items():
            with _opened(self.folder / file) as opened:
                _check_there(self.folder / file, opened, wanted)
                for name in wanted:
                    part = opened.get_slice(name)
                    kind = part.get_dtype()
                    if kind not in TYPES:
                        known = ", ".join(TYPES)
                        raise DataError(
                            f"{self.folder / file}: {name} is of the type {kind}; types are: {known}"
                        )
                    found[name] = tuple(part.get_shape()), TYPES[kind]
        return found

    def samples(self) -> dict[str, str]:
        """A digest of each file's beginnings of tensors: another training of the same network has others.

        A digest of whole files would read a network of 140 GB to the end before each run.
        """
        found = {}
        for file, names in sorted(self._by_file(self.file_of).items()):
            with _opened(self.folder / file) as opened:
                found[file] = digest_of_tensors({name: _beginning(opened, name) for name in names})
        return found

    def _by_file(self, names: Iterable[str]) -> dict[str, list[str]]:
        by_file: dict[str, list[str]] = {}
        for name in names:
            if name not in self.file_of:
                raise DataError(f"{self.folder}: {name} is in none of its files")
            by_file.setdefault(self.file_of[name], []).append(name)
        return by_file


TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
"""The types of safetensors that networks have, by their names there."""


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as a file of their own, whole or not at all; the digest of the file.

    The file has no digest inside: safetensors writes several entries beside the tensors in any order, and the
    same network is to be the same file.
    """
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as temporary:
        save_file(whole, temporary, {"format": "pt"})
    return digest_of_file(path)


def write_index(folder: Path, file_of: Mapping[str, str], size: int) -> None:
    """Write which tensor lies in which file.

    Args:
        folder: of the files.
        file_of: by tensor.
        size: the bytes of all tensors.
    """
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(file_of.items()))}
    write_text(folder / INDEX, to_json(content))


def _checked(folder: Path, index: Any) -> dict[str, str]:
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise DataError(f"{folder / INDEX} is damaged: it has no weight_map from tensors to files")
    for file in sorted(set(names.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise DataError(f"{folder / INDEX}: there is no file {file[:200]!r} in the folder")
    return names


def _check_there(path: Path, opened: Any, names: Iterable[str]) -> None:
    there = set(opened.keys())
    for name in names:
        if name not in there:
            raise DataError(f"{path}: {name} is missing")


def _beginning(opened: Any, name: str) -> Tensor:
    """The first rows of a tensor, of `SAMPLE` entries at least, or all of it."""
    part = opened.get_slice(name)
    shape = part.get_shape()
    if not shape:
        value: Tensor = opened.get_tensor(name)
        return value
    rows: Tensor = part[: max(1, -(-SAMPLE // max(1, math.prod(shape[1:]))))]
    return rows


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {str(error)[:200]}") from None
