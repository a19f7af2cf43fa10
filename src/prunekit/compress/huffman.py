"""Canonical Huffman codes of integers, with all that is needed to read them again."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from prunekit.errors import DataError, InputError
from prunekit.extras import imported

if TYPE_CHECKING:
    from bitarray import bitarray

MAX_SYMBOLS = 1 << 16
"""The most different symbols."""

_MAX_LENGTH = 31  # of a code in bits, as much as bitarray reads
_PURPOSE = "A Huffman code"
_BEHIND = "damaged: there are bytes behind the last code"


def huffman_encode(symbols: np.ndarray) -> bytes:
    """Integers as bytes: table and codes.

    First stand the numbers of symbols with codes of 1, 2, 3, ... bits, then the symbols in the order of their
    codes, each as its difference to the one before, then the codes. A single symbol needs no codes. How many
    integers there are is for the caller to keep.

    Raises:
        InputError: if there are more than `MAX_SYMBOLS` different ones.
    """
    values, counts = np.unique(symbols, return_counts=True)
    if len(values) < 2:
        return _table([], [int(value) for value in values])
    codes, lengths, order = canonical_code(values, counts)
    bits = no_bits()
    bits.encode(codes, symbols.ravel().tolist())
    return _table(lengths, order) + bits.tobytes()


def no_bits() -> bitarray:
    """An array of bits, empty, to which codes are added."""
    bits: bitarray = imported("bitarray", _PURPOSE).bitarray()
    return bits


def canonical_code(
    values: np.ndarray, counts: np.ndarray
) -> tuple[dict[int, bitarray], list[int], list[int]]:
    """A canonical Huffman code of two or more symbols, its codes of at most 31 bits.

    Args:
        values: the symbols.
        counts: how often each stands.

    Returns:
        The codes by symbol, the numbers of codes of 1, 2, 3, ... bits, and the symbols in the order of codes.

    Raises:
        InputError: if there are more than `MAX_SYMBOLS`.
    """
    if len(values) > MAX_SYMBOLS:
        raise InputError(f"{len(values):,} different symbols; at most {MAX_SYMBOLS:,}")
    # codes grow longest with Fibonacci counts; none below a millionth keeps them within 31 bits
    weights = np.maximum(counts, counts.sum() >> 20)
    canonical_huffman = imported("bitarray.util", _PURPOSE).canonical_huffman
    codes, lengths, order = canonical_huffman(dict(zip(values.tolist(), weights.tolist(), strict=True)))
    return codes, lengths[1:], order


def huffman_decode(data: bytes, count: int) -> np.ndarray:
    """The integers, int64, in one dimension.

    Args:
        data: from `huffman_encode`.
        count: how many there are.

    Raises:
        DataError: for bytes that are none of its.
    """
    lengths, order, at = _read_table(data)
    if (not count or len(order) == 1) and len(data) > at:
        raise DataError(_BEHIND)
    if not count:
        return np.zeros(0, np.int64)
    if not order:
        raise DataError("damaged: a Huffman code without symbols")
    if len(order) == 1:
        return np.full(count, order[0], np.int64)
    if count > 8 * (len(data) - at):  # every code has a bit at least
        raise DataError(f"damaged: {count:,} symbols cannot be in {len(data) - at:,} bytes")
    bits = no_bits()
    bits.frombytes(data[at:])
    canonical_decode = imported("bitarray.util", _PURPOSE).canonical_decode
    try:
        found = np.fromiter(islice(canonical_decode(bits, [0, *lengths], order), count), np.int64)
    except ValueError as error:
        raise DataError(f"damaged: no Huffman code ({error})") from error
    if len(found) < count:
        raise DataError(f"damaged: {len(found):,} symbols of {count:,}")
    of_symbol = dict(zip(order, np.repeat(np.arange(1, len(lengths) + 1), lengths).tolist(), strict=True))
    values, counts = np.unique(found, return_counts=True)
    used = sum(
        of_symbol[value] * times for value, times in zip(values.tolist(), counts.tolist(), strict=True)
    )
    if len(bits) - used >= 8:
        raise DataError(_BEHIND)
    return found


def _table(lengths: list[int], order: list[int]) -> bytes:
    """Numbers of codes by length, and the symbols; one without a length stands for itself."""
    steps = np.diff(order, prepend=0).tolist()
    written = [len(lengths), *lengths, *([] if lengths else [len(order)])]
    return b"".join(map(varint, [*written, *(2 * abs(step) - (step > 0) for step in steps)]))


def _read_table(data: bytes) -> tuple[list[int], list[int], int]:
    """Numbers of codes by length, the symbols, and where the codes begin."""
    longest, at = read_varint(data, 0)
    if longest > _MAX_LENGTH:
        raise DataError(f"damaged: Huffman codes of {longest} bits")
    lengths = []
    for _ in range(longest):
        length, at = read_varint(data, at)
        lengths.append(length)
    total = sum(lengths)
    if not lengths:
        total, at = read_varint(data, at)
    if total > MAX_SYMBOLS or (not lengths and total > 1):
        raise DataError(f"damaged: {total:,} Huffman codes")
    symbols, before = [], 0
    for _ in range(total):
        step, at = read_varint(data, at)
        before += (step + 1) // 2 if step % 2 else -(step // 2)
        symbols.append(before)
    if symbols and not -(1 << 31) <= min(symbols) <= max(symbols) < 1 << 31:
        raise DataError("damaged: a symbol beyond 32 bits")
    return lengths, symbols, at


def varint(number: int) -> bytes:
    """A number from 0: seven bits a byte, the lowest first, the high bit saying that more follow."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that stands there, of at most 35 bits, and the place behind it.

    Raises:
        DataError: if the bytes end before the number, or it is longer.
    """
    number = 0
    for place in range(5):
        if at + place >= len(data):
            raise DataError("damaged: the bytes end within a number")
        byte = data[at + place]
        number |= (byte & 127) << (7 * place)
        if byte < 128:
            return number, at + place + 1
    raise DataError("damaged: a number of more than 35 bits")
