"""What a packed file takes: each stage of Deep Compression on its levels, and what is stored.

Source: Han, Mao, Dally 2016, arXiv 1510.00149, tables 2 and 3, whose columns these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.compress import measure_levels
from prunekit.compress.gaps import WIDTHS, gaps_of
from prunekit.compress.huffman import huffman_encode
from prunekit.files import path_of
from prunekit.packing.bytes import UnpackedTensor, coding_order, read_packed, unpacked

FLOAT = 32
"""Bits of an uncompressed weight."""


@dataclass(frozen=True)
class Bits:
    """What a layer's weights take by one way of coding, its shared values not counted.

    Attributes:
        values: bits of the values or of their codes, fillers included.
        positions: bits of where they are.
    """

    values: float
    positions: float

    @property
    def total(self) -> float:
        """Both."""
        return self.values + self.positions


@dataclass(frozen=True)
class LayerCost:
    """A tensor that is stored as levels.

    Attributes:
        name: of it.
        shape: of it.
        weights: how many numbers it has.
        kept: how many of them are not 0.
        shared: how many different values these have.
        gap_bits: of a gap in the published stages; None where each has what is smallest.
        table: bytes of the shared values.
        pruned: each entry, fillers too, a float and a gap (P).
        quantized: each a code of fixed length and a gap (P+Q).
        huffman: codes and gaps by Huffman codes, their tables included (P+Q+H).
        stored: as the file has it.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    shared: int
    gap_bits: int | None
    table: int
    pruned: Bits
    quantized: Bits
    huffman: Bits
    stored: Bits

    @property
    def bytes(self) -> float:
        """What it takes in the file, with its shared values."""
        return self.table + self.stored.total / 8


@dataclass(frozen=True)
class PackedCosts:
    """A packed file as a table.

    Attributes:
        coding: "adaptive" or "published".
        layers: the tensors that are stored as levels.
        numbers: how many numbers all tensors have.
        values: bytes of the tensors that are stored otherwise.
        overhead: bytes of all else: what the file says, checksum, ends of codes.
        size: bytes of the file.
    """

    coding: str
    layers: tuple[LayerCost, ...]
    numbers: int
    values: int
    overhead: float
    size: int

    @property
    def ratio(self) -> float:
        """All numbers in float32 over the file."""
        return self.numbers * FLOAT / 8 / self.size

    def staged(self, stage: str) -> float:
        """Bytes of the network after a stage: levels by its code, shared values, all else as stored.

        Args:
            stage: "pruned", "quantized" or "huffman".
        """
        tables = 0 if stage == "pruned" else sum(layer.table for layer in self.layers)
        return sum(getattr(layer, stage).total for layer in self.layers) / 8 + tables + self.values

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        layers = [{**asdict(layer), "bytes": layer.bytes} for layer in self.layers]
        stages = {stage: self.staged(stage) for stage in ("pruned", "quantized", "huffman")}
        return {**asdict(self), "layers": layers, "ratio": self.ratio, "bytes_of_stages": stages}


def costs_of(path: str | Path, *, max_bytes: int | None = None) -> PackedCosts:
    """What a packed file takes, layer by layer.

    Args:
        path: of the file.
        max_bytes: see `unpack`.

    Raises:
        DataError: as `unpack`.
        InputError: if `max_bytes` is no whole number of at least 0.
    """
    path = path_of("path", path)
    found = unpacked(read_packed(path), path, max_bytes)
    stored = [None] * len(found.tensors) if found.head.published else _adaptive(found.tensors)
    both = zip(found.tensors, stored, strict=True)
    layers = tuple(_layer(each, bits) for each, bits in both if each.levels is not None)
    values = sum(each.payload for each in found.tensors if each.levels is None)
    return PackedCosts(
        "published" if found.head.published else "adaptive",
        layers,
        sum(each.value.numel() for each in found.tensors),
        values,
        found.size - values - sum(layer.bytes for layer in layers),
        found.size,
    )


def _adaptive(tensors: Sequence[UnpackedTensor]) -> list[Bits]:
    """What the model of the file spends on each tensor, and on its mask if that is a layer of its own."""
    layers = [(owner, layer) for owner, each in enumerate(tensors) for layer in each.layers]
    ordered = [layers[place] for place in coding_order([layer.levels.ndim for _, layer in layers])]
    spent = measure_levels([layer.levels for _, layer in ordered], [layer.plane for _, layer in ordered])
    found = [Bits(0, 0) for _ in tensors]
    for (owner, _), (values, positions) in zip(ordered, spent, strict=True):
        found[owner] = Bits(found[owner].values + values, found[owner].positions + positions)
    return found


def _layer(each: UnpackedTensor, stored: Bits | None) -> LayerCost:
    levels = each.levels
    assert levels is not None
    widths = [each.gap_bits] if each.gap_bits else WIDTHS
    stages = [_stages(levels, width) for width in widths]
    pruned, quantized, huffman = (
        min((stage[place] for stage in stages), key=lambda bits: bits.total) for place in range(3)
    )
    return LayerCost(
        name=each.record.name,
        shape=each.record.shape,
        weights=each.value.numel(),
        kept=int(np.count_nonzero(levels)),
        shared=len(np.unique(levels[levels != 0])),
        gap_bits=each.gap_bits,
        table=each.payload,
        pruned=pruned,
        quantized=quantized,
        huffman=huffman,
        stored=stored or huffman,
    )


def _stages(levels: np.ndarray, width: int) -> tuple[Bits, Bits, Bits]:
    """P, P+Q and P+Q+H with gaps of so many bits."""
    gaps, codes = gaps_of(levels, width)
    fixed = max(len(np.unique(codes)) - 1, 0).bit_length()  # code 0 is the filler's, where there is one
    positions = width * len(gaps)
    by_huffman = Bits(8 * len(huffman_encode(codes)), 8 * len(huffman_encode(gaps)))
    return Bits(FLOAT * len(gaps), positions), Bits(fixed * len(gaps), positions), by_huffman
