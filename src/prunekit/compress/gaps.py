"""Positions and codes of a sparse layer as Deep Compression publishes them: gaps with fillers, and Huffman.

Source: Han, Mao, Dally 2016, arXiv 1510.00149, sections 2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prunekit.compress.coder import checked_shape
from prunekit.compress.huffman import huffman_decode, huffman_encode, read_varint, varint
from prunekit.errors import DataError, InputError
from prunekit.settings import whole

WIDTHS = range(1, 13)
"""The widths of gaps in bits that are tried."""


def gaps_of(codes: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaps between the codes that are not 0, and these codes; 0 among them is a filler.

    A gap is the number of zeros in between. One of 2^width or more is cut by fillers, each the widest gap and
    a code 0. So a position is the sum of (gap + 1) up to it, less 1. The paper's example, with 3 bits:

        positions  1    4    15
        gaps       1    2    7    2     the third leads to position 12, which is a filler
        codes      3.4  0.9  0    1.7

    Args:
        codes: integers of any shape, read row by row.
        width: of a gap, in bits.

    Returns:
        Two arrays of one length, int64 in one dimension.
    """
    flat = np.asarray(codes).ravel()
    positions = np.flatnonzero(flat)
    distances = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum((distances >> width) + 1)
    count = int(ends[-1]) if len(ends) else 0
    gaps, values = np.full(count, (1 << width) - 1, np.int64), np.zeros(count, np.int64)
    gaps[ends - 1] = distances & ((1 << width) - 1)
    values[ends - 1] = flat[positions]
    return gaps, values


def codes_of(gaps: np.ndarray, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The codes that the gaps are between; int32, of this shape.

    Raises:
        DataError: if a gap leads behind the end.
    """
    flat = np.zeros(math.prod(shape), np.int32)
    positions = np.cumsum(gaps + 1) - 1
    if len(positions) and (positions[-1] >= len(flat) or gaps.min() < 0):
        raise DataError("damaged: a gap leads out of the layer")
    flat[positions] = values
    return flat.reshape(shape)


def encode_gaps(codes: np.ndarray, width: int | None = None) -> bytes:
    """A layer as bytes: the width of gaps, how many there are, and gaps and codes, each by a Huffman code.

    Args:
        codes: integers of any shape, of 32 bits.
        width: of a gap in bits; by default that of `WIDTHS` that takes least bytes in all.

    Raises:
        InputError: for a width out of range, or codes that are no integers of 32 bits.
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise InputError(f"codes must be integers, not {codes.dtype}")
    if codes.size and not -(1 << 31) <= int(codes.min()) <= int(codes.max()) < 1 << 31:
        raise InputError("codes must be integers of 32 bits")
    if width is None:
        return min((encode_gaps(codes, width) for width in WIDTHS), key=len)
    width = whole("width", width, WIDTHS[0], WIDTHS[-1])
    gaps, values = gaps_of(codes, width)
    first = huffman_encode(gaps)
    return bytes([width]) + varint(len(gaps)) + varint(len(first)) + first + huffman_encode(values)


def decode_gaps(data: bytes, shape: Sequence[int]) -> np.ndarray:
    """The layer that was encoded; int32.

    Args:
        data: from `encode_gaps`.
        shape: of the layer.

    Raises:
        DataError: for bytes that are none of its, before more is allocated than the layer takes; for a shape
            that no array has.
    """
    shape = checked_shape(shape)
    if not data or data[0] not in WIDTHS:
        raise DataError("damaged: no width of gaps")
    count, at = read_varint(data, 1)
    size, at = read_varint(data, at)
    if count > math.prod(shape):
        raise DataError(f"damaged: {count:,} codes in a layer of {math.prod(shape):,}")
    gaps, values = huffman_decode(data[at : at + size], count), huffman_decode(data[at + size :], count)
    return codes_of(gaps, values, shape)
