"""The bytes of a packed file.

It is the coded form of what a saved folder holds, with the same tensors to the bit:

    2 bytes  b"\\xb6P"
    1 byte   the version, 1
    ...      what is said of the network and of its tensors, deflated (`head.py`)
    ...      the payloads of the tensors one after the other (`tensor_codes.py`)
    ...      the levels of all tensors, matrices and filters first, by one adaptive model
             (`compress.encode_levels`), or each by gaps and Huffman codes, behind its number of bytes
             (`compress.encode_gaps`)
    8 bytes  the first of the SHA-256 of everything before
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunekit.compress import decode_gaps, decode_levels, encode_gaps, encode_levels
from prunekit.compress.huffman import varint
from prunekit.errors import DataError, ModelError, naming
from prunekit.files import read_bounded
from prunekit.packing.head import (
    MAX_DIMENSIONS,
    Head,
    MaskKind,
    TensorRecord,
    head_from_bytes,
    head_to_bytes,
    order_of,
)
from prunekit.packing.planes import Plane, plane_of
from prunekit.packing.tensor_codes import Reader, bits_of, coded, decoded, real
from prunekit.saving.description import (
    BITS,
    BUILT_MIN,
    BUILT_RATIO,
    VALUES,
    PrunedTensor,
    mask_of,
    with_zeros,
    without_zeros,
)
from prunekit.saving.saved_files import Contents
from prunekit.settings import whole

MAGIC, VERSION = b"\xb6P", 1
CHECKED = 8
"""Bytes of the SHA-256."""

MAX_FILE = 1 << 40
EXACT = 1 << 16
"""Up to how many levels the coder itself says how many bytes they take; else their entropy does."""


@dataclass(frozen=True, eq=False)
class LevelsOf:
    """Levels that are coded: those of a tensor, or its mask as zeros and ones.

    Attributes:
        levels: integers of any shape.
        plane: see `encode_levels`.
    """

    levels: np.ndarray
    plane: Plane | None = None


@dataclass(frozen=True, eq=False)
class UnpackedTensor:
    """A tensor of a packed file.

    Attributes:
        record: how it stands there.
        value: dense.
        payload: the bytes that it takes beside its levels.
        levels: int32, of the shape of its real parts; None for forms without.
        mask: True = kept; None if it is not pruned.
        gap_bits: of its gaps, if it is coded by such.
    """

    record: TensorRecord
    value: Tensor
    payload: int
    levels: np.ndarray | None
    mask: Tensor | None
    gap_bits: int | None = None

    @property
    def layers(self) -> list[LevelsOf]:
        """What of it is coded as levels."""
        found = []
        if self.levels is not None:
            height = self.record.plane
            plane = (height, self.levels.shape[1] // height) if height else None
            found.append(LevelsOf(self.levels, plane))
        if self.record.mask is MaskKind.OWN and self.mask is not None:
            found.append(LevelsOf(self.mask.numpy().astype(np.int32)))
        return found


@dataclass(frozen=True)
class Unpacked:
    """The parts of a packed file.

    Attributes:
        head: what it says.
        tensors: in the order of their records.
        size: bytes of the file.
        said: bytes of the head.
        levels: bytes of the levels.
    """

    head: Head
    tensors: Sequence[UnpackedTensor]
    size: int
    said: int
    levels: int


def packed(contents: Contents, published: bool = False, gap_bits: int | None = None) -> bytes:
    """The bytes of a packed file.

    Args:
        contents: what it holds.
        published: whether levels are coded by gaps and Huffman codes.
        gap_bits: see `pack`.

    Raises:
        InputError, ModelError: as `pack`.
    """
    encode = partial(encode_gaps, width=gap_bits) if published else _adaptive
    built = contents.description.architecture
    records, payloads, layers = list[TensorRecord](), list[bytes](), list[LevelsOf]()
    for name, value, mask in _dense(contents):
        found = coded(value, partial(_cost, encode))
        kind, plane = MaskKind.NONE, None
        if found.levels is not None:
            if found.levels.ndim == 2 and not published:
                before = [record.shape[0] for record in records if len(record.shape) > 2]
                plane = plane_of(found.levels, built.input_shape if built else None, before)
            layers.append(LevelsOf(found.levels, plane))
        if mask is not None:
            kind = MaskKind.NONZERO if torch.equal(_nonzero(value), mask) else MaskKind.OWN
            if kind is MaskKind.OWN:
                layers.append(LevelsOf(mask.numpy().astype(np.int32)))
        height = plane[0] if plane else 0
        shape = tuple(value.shape)
        records.append(TensorRecord(name, shape, value.dtype, found.form, found.stored, kind, height))
        payloads.append(found.payload)
    if published:
        codes = [encode(layer.levels) for layer in layers]
        levels = b"".join(varint(len(code)) + code for code in codes)
    else:
        ordered = [layers[place] for place in coding_order([layer.levels.ndim for layer in layers])]
        levels = encode_levels([layer.levels for layer in ordered], [layer.plane for layer in ordered])
    head = head_to_bytes(Head(contents.description, contents.graph, published, records))
    data = MAGIC + bytes([VERSION]) + head + b"".join(payloads) + levels
    return data + hashlib.sha256(data).digest()[:CHECKED]


def unpacked(data: bytes, path: Path, max_bytes: int | None = None) -> Unpacked:
    """The parts of a packed file.

    Args:
        data: its bytes.
        path: of the file, for messages.
        max_bytes: see `unpack`.

    Raises:
        DataError: if it is damaged, of another version or kind, or says that it holds more.
        InputError: if `max_bytes` is no whole number of at least 0.
    """
    limit = 4 * (BUILT_MIN + BUILT_RATIO * len(data))
    if max_bytes is not None:
        limit = whole("max_bytes", max_bytes, 0, sys.maxsize)
    head, rest = _checked(data, path)
    needed = sum(record.memory for record in head.records)
    if needed > limit:
        raise DataError(
            f"{path} of {len(data):,} bytes says that its tensors take {needed:,}, and {limit:,} are "
            f"allowed: give max_bytes={needed} to load it all the same"
        )
    reader = Reader(rest)
    with naming(str(path)):
        made = []
        for record in head.records:
            before = reader.left
            value = decoded(record.form, record.stored, record.real_shape, record.real_dtype, reader)
            made.append((value, before - reader.left))
        after = reader.left
        layers = iter(_decoded(head, reader))
        found = [
            _tensor(record, value, payload, layers)
            for record, (value, payload) in zip(head.records, made, strict=True)
        ]
    return Unpacked(head, found, len(data), len(data) - len(rest) - len(MAGIC) - 1 - CHECKED, after)


def contents_in(found: Unpacked) -> Contents:
    """What a packed file holds of a network, in the form of a saved folder.

    Raises:
        DataError: if two tensors have one name.
    """
    tensors, pruned = dict[str, Tensor](), dict[str, PrunedTensor]()
    for each in found.tensors:
        name, value, mask = each.record.name, each.value, each.mask
        parts = {name: value}
        if mask is not None:
            bits, values = without_zeros(value, mask)
            parts = {name + BITS: bits, name + VALUES: values}
            pruned[name] = PrunedTensor(shape=list(value.shape), kept=values.numel())
        if not tensors.keys().isdisjoint(parts):
            raise DataError(f"damaged: {name} is there twice")
        tensors |= parts
    description = found.head.description.model_copy(update={"pruned": pruned})
    return Contents(description, tensors, found.head.graph)


def _checked(data: bytes, path: Path) -> tuple[Head, bytes]:
    """The head and what is behind it, of a file of this version that is as it was written."""
    if not data.startswith(MAGIC):
        raise DataError(f"{path} was not written by prunekit pack")
    version = data[len(MAGIC) :][:1]
    if version not in (b"", bytes([VERSION])):
        raise DataError(
            f"{path} is of version {version[0]}, this prunekit reads version {VERSION}: another one wrote it"
        )
    body, said = data[:-CHECKED], data[-CHECKED:]
    if len(body) <= len(MAGIC) or hashlib.sha256(body).digest()[:CHECKED] != said:
        raise DataError(f"{path} is damaged or truncated: its content is not what its checksum says")
    return head_from_bytes(body[len(MAGIC) + 1 :], path)


# ---- levels ------------------------------------------------------------------------------------------------


def _adaptive(levels: np.ndarray) -> bytes:
    return encode_levels([levels])


def _cost(encode: Callable[[np.ndarray], bytes], levels: np.ndarray) -> float:
    """About how many bytes levels take."""
    if levels.size <= EXACT:
        return len(encode(levels))
    share = np.unique(levels, return_counts=True)[1] / levels.size
    return float(-(share * np.log2(share)).sum() * levels.size / 8)


def coding_order(dimensions: Sequence[int]) -> list[int]:
    """The places of the layers as they are coded: what is learned of one serves the next of its kind."""
    return sorted(range(len(dimensions)), key=lambda place: dimensions[place] < 2)


def _decoded(head: Head, reader: Reader) -> list[tuple[np.ndarray, int | None]]:
    """The levels of all layers, in the order of their tensors, with the bits of gaps.

    Raises:
        DataError: if bytes are left behind them, or they are none of levels.
    """
    shapes, planes = list[tuple[int, ...]](), list[Plane | None]()
    for record in head.records:
        if record.form.has_levels:
            shapes.append(record.real_shape)
            planes.append((record.plane, record.shape[1] // record.plane) if record.plane else None)
        if record.mask is MaskKind.OWN:
            shapes.append(record.shape)
            planes.append(None)
    if head.published:
        codes = [reader.take(reader.number()) for _ in shapes]
        if reader.left:
            raise DataError("damaged: there are bytes behind its levels")
        return [(decode_gaps(code, shape), code[0]) for code, shape in zip(codes, shapes, strict=True)]
    order = coding_order([len(shape) for shape in shapes])
    found = decode_levels(
        reader.take(reader.left),
        [shapes[place] for place in order],
        [planes[place] for place in order],
        max_weights=sys.maxsize,
    )
    by_place = dict(zip(order, found, strict=True))
    return [(by_place[place], None) for place in range(len(shapes))]


def _tensor(
    record: TensorRecord,
    value: Tensor | Callable[[np.ndarray], Tensor],
    payload: int,
    layers: Iterator[tuple[np.ndarray, int | None]],
) -> UnpackedTensor:
    levels, mask, gap_bits = None, None, None
    if callable(value):
        levels, gap_bits = next(layers)
        value = value(levels)
    if record.dtype.is_complex:
        value = torch.view_as_complex(value)
    if record.mask is MaskKind.NONZERO:
        mask = _nonzero(value)
    elif record.mask is MaskKind.OWN:
        mask = torch.from_numpy(np.asarray(next(layers)[0] != 0))
    return UnpackedTensor(record, value, payload, levels, mask, gap_bits)


# ---- tensors -----------------------------------------------------------------------------------------------


def _dense(contents: Contents) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Name, value and mask of every tensor, in the order in which the network has them, where that is known.

    Raises:
        ModelError: for a tensor of too many dimensions.
    """
    description, tensors = contents.description, contents.tensors
    names = dict.fromkeys(name.removesuffix(BITS).removesuffix(VALUES) for name in tensors)
    known = [name for name in order_of(contents) if name in names]
    for name in dict.fromkeys([*known, *names]):
        value, mask = tensors.get(name), None
        if name in description.pruned:
            shape = tuple(description.pruned[name].shape)
            mask = mask_of(tensors[name + BITS], shape)
            value = with_zeros(tensors[name + BITS], tensors[name + VALUES], shape)
        assert value is not None
        if value.dim() > MAX_DIMENSIONS:
            raise ModelError(f"{name} has {value.dim()} dimensions; at most {MAX_DIMENSIONS} can be packed")
        yield name, value.contiguous(), mask


def _nonzero(value: Tensor) -> Tensor:
    """The values whose bits are not all 0."""
    found = torch.from_numpy(np.asarray(bits_of(real(value)) != 0))  # of no dimension, a scalar
    return found.any(-1) if value.is_complex() else found


def read_packed(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return read_bounded(path, MAX_FILE, "a packed network")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
