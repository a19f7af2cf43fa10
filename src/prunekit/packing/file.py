"""A network as one small file: `pack` and `unpack`, and the file as one of the forms that hold a network."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from prunekit.compress.gaps import WIDTHS
from prunekit.digests import digest_of_json
from prunekit.errors import DataError, InputError, ModelError, explaining, instead, naming, shown
from prunekit.files import file_to_write, finite, open_regular, path_of, replacing
from prunekit.masks import Masks
from prunekit.packing.bytes import MAGIC, contents_in, packed, read_packed, unpacked
from prunekit.packing.tensor_codes import bits_of, real
from prunekit.saving.contents import Network, contents_of, model_in
from prunekit.saving.description import Architecture
from prunekit.saving.pretrained import SavedNetwork
from prunekit.saving.saved_files import Contents, Part, SavedFiles
from prunekit.targets import check_unparametrized

CODINGS = ("adaptive", "published")


def pack(
    network: Network,
    path: str | Path,
    *,
    coding: str = "adaptive",
    masks: Masks | None = None,
    architecture: Architecture | None = None,
    gap_bits: int | None = None,
    keep_history: bool = False,
) -> Path:
    """Write a network to one small file, without a loss; an earlier file there is replaced.

    Each tensor takes the form with least bytes: levels where it has few different values, half precision
    where that holds all of them, and so on. So a network gets small whose weights were pruned and made to
    share values before. The file is read again before it is kept.

    Args:
        network: what `prune()`, `prune_groups()` or `shrink()` returned, or a model.
        path: of the file.
        coding: of levels. "adaptive" is the smallest; "published" is that of Deep Compression, gaps between
            weights and Huffman codes.
        masks: which weights are removed, if a plain model is given.
        architecture: for models of `prunekit.models`, so that unpacking needs no model.
        gap_bits: of a published gap, 1 to 12; by default what is smallest for each layer.
        keep_history: whether to keep the recipe, the history and what was taken out, as a folder does.

    Raises:
        InputError: if it is no path, or that of a folder, the masks are another model's, or an argument has
            another value.
        ModelError: as `save_pretrained`; if the model has gates or other parametrizations, or is not of the
            architecture.
        OSError: if it cannot be written; an earlier file is then as it was.
    """
    check_unparametrized(model_in(network))
    contents = contents_of(network, masks, architecture)
    return write_packed(contents, path, coding=coding, gap_bits=gap_bits, keep_history=keep_history)


def unpack(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    allow_nan: bool = False,
    max_bytes: int | None = None,
) -> nn.Module:
    """Load a network that `pack` wrote; removed weights are zeros.

    Nothing that the file holds is run or imported, and it may come from strangers; see SECURITY.md.

    Args:
        path: of the file.
        model: as of `load_pretrained`: only needed if the file names no architecture and holds no graph.
        allow_nan: whether weights may be NaN, as those of a network whose training diverged are.
        max_bytes: what all tensors may take in memory; by default 100 MB and 4,000 times the file.

    Raises:
        DataError: if the file is missing, damaged, of another version or kind, or says that it holds more
            than `max_bytes`; if a weight is NaN; or if an exported graph calls what it may not.
        InputError, ModelError: as `load_pretrained`; if `max_bytes` is no whole number of at least 0.
    """
    return SavedNetwork(PackedFile(path, max_bytes=max_bytes)).load(model, allow_nan=allow_nan)


# ---- from contents to the file -----------------------------------------------------------------------------


def write_packed(
    contents: Contents,
    path: str | Path,
    *,
    coding: str = "adaptive",
    gap_bits: int | None = None,
    keep_history: bool = False,
) -> Path:
    """Write what is saved of a network to one small file; see `pack`."""
    path = file_to_write(path)
    if coding not in CODINGS:
        raise InputError(f"coding = {shown(coding)}: there is no such coding{instead(coding, CODINGS)}")
    if gap_bits is not None and (coding != "published" or gap_bits not in WIDTHS):
        raise InputError(
            f"gap_bits = {shown(gap_bits)}: write {WIDTHS[0]} to {WIDTHS[-1]}, with coding='published'"
        )
    if not keep_history:
        plain = contents.description.model_copy(update={"shrunk": None, "recipe": None, "history": []})
        contents = replace(contents, description=plain)
    data = packed(contents, coding == "published", gap_bits)
    with explaining(ModelError, lambda: "the network cannot be packed"):
        _check_same(contents, data, path)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def _check_same(contents: Contents, data: bytes, path: Path) -> None:
    """Refuse, with a `ModelError`, bytes that do not give what they were made of, or no network."""
    found = contents_of_bytes(data, path, sys.maxsize)
    tensors, back = contents.tensors, found.tensors
    same = set(tensors) == set(back) and all(
        value.dtype == back[name].dtype
        and value.shape == back[name].shape
        and np.array_equal(bits_of(real(value)), bits_of(real(back[name])))
        for name, value in tensors.items()
    )
    said = [digest_of_json(finite([each.description.model_dump(), each.graph])) for each in (contents, found)]
    if not same or said[0] != said[1]:
        raise ModelError("what was written is not what is read back")
    built = contents.description.architecture
    if found.graph is not None or (built is not None and ":" not in built.name):
        SavedNetwork(PackedFile.of(found, path)).load(allow_nan=True, max_bytes=sys.maxsize)


# ---- the file as a form of a saved network -----------------------------------------------------------------


class PackedFile(SavedFiles):
    """A file that `pack` wrote.

    Args:
        path: of the file.
        max_bytes: see `unpack`.

    Raises:
        DataError, InputError: as `unpack`, but for what only a model tells.
    """

    described_in = "what it says of its network"

    def __init__(self, path: str | Path, *, max_bytes: int | None = None) -> None:
        self.path = path_of("path", path)
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
