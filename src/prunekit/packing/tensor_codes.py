"""How one tensor is coded, to the bit: as levels with what they stand for, or its values in few bytes.

Values are told apart by their bits: -0.0 is not 0.0, and two NaNs may differ. Level 0 is the value whose bits
are all 0, as of every removed weight. The others are counted from it outwards, negative and positive values
each for themselves.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from prunekit.compress.coder import MAX_LEVEL
from prunekit.compress.huffman import read_varint, varint
from prunekit.errors import DataError

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64)

MAX_DIVISOR = 32
"""How many steps of a grid the least value on it may be."""


class Form(IntEnum):
    """What the bytes of a tensor are."""

    ZEROS = 0
    CONSTANT = 1
    PLAIN = 2
    PRESSED = 3
    TABLE = 4
    GRID = 5

    @property
    def has_levels(self) -> bool:
        """Whether its values are levels, which are coded with those of other tensors."""
        return self >= Form.TABLE


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """A tensor as bytes, beside its shape and dtype.

    Attributes:
        form: of the bytes.
        stored: the place among `storable(dtype)` of the dtype in which values are written.
        payload: values, tables, steps.
        levels: int32, of the shape; None for forms without.
    """

    form: Form
    stored: int = 0
    payload: bytes = b""
    levels: np.ndarray | None = None


class Reader:
    """Bytes that are read one after the other.

    Raises:
        DataError: from every method, if fewer bytes are left.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        found = self._data[self._at : self._at + count]
        if len(found) < count:
            raise DataError("damaged: it ends within a tensor")
        self._at += count
        return found

    def number(self) -> int:
        """The next number of any length, as `varint` writes it."""
        number, self._at = read_varint(self._data, self._at)
        return number

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at


def storable(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes in which values of a dtype may be written, itself first."""
    if dtype in _FLOATS:
        return tuple(each for each in _FLOATS if each == dtype or each.itemsize < dtype.itemsize)
    return (dtype, *_WHOLE[: _WHOLE.index(dtype)]) if dtype in _WHOLE else (dtype,)


def real(value: Tensor) -> Tensor:
    """A tensor without imaginary parts: these are a dimension more."""
    return torch.view_as_real(value) if value.is_complex() else value


def bits_of(value: Tensor) -> np.ndarray:
    """The bits of a real tensor as unsigned integers of as many bytes."""
    size = value.dtype.itemsize
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return value.detach().contiguous().view(whole).numpy().view(f"u{size}")


def coded(value: Tensor, cost: Callable[[np.ndarray], float]) -> CodedTensor:
    """A tensor in the form that takes least bytes.

    Args:
        value: on the CPU, of a dtype in `DTYPES`.
        cost: about how many bytes levels take.
    """
    value = real(value)
    bits = bits_of(value)
    distinct, where = np.unique(bits, return_inverse=True)
    if not (distinct != 0).any():
        return CodedTensor(Form.ZEROS)
    if len(distinct) == 1:
        return CodedTensor(Form.CONSTANT, *_written(value.reshape(-1)[:1]))
    stored, plain = _written(value)
    options = [CodedTensor(Form.PLAIN, stored, plain)]
    pressed = _pressed(plain, storable(value.dtype)[stored].itemsize)
    options.append(CodedTensor(Form.PRESSED, stored, pressed))
    if len(distinct) <= 2 * MAX_LEVEL + 1:
        outwards = _Outwards.of(distinct, value.dtype)
        for form, found in ((Form.TABLE, _table(outwards)), (Form.GRID, _grid(outwards))):
            if found is not None:
                levels, stored, payload = found
                of_distinct = np.zeros(len(distinct), np.int32)
                of_distinct[outwards.places] = levels
                options.append(CodedTensor(form, stored, payload, of_distinct[where].reshape(bits.shape)))

    def size(option: CodedTensor) -> float:
        return len(option.payload) + (0 if option.levels is None else cost(option.levels))

    return min(options, key=size)


def decoded(
    form: Form, stored: int, shape: tuple[int, ...], dtype: torch.dtype, reader: Reader
) -> Tensor | Callable[[np.ndarray], Tensor]:
    """The tensor, or what makes it of its levels.

    Args:
        form, stored: see `CodedTensor`.
        shape: of the tensor; what it takes in memory has been checked.
        dtype: of the tensor, real.
        reader: of the payloads, at that of this tensor.

    Raises:
        DataError: for bytes that are none of its.
    """
    dtypes = storable(dtype)
    if stored >= len(dtypes):
        raise DataError(f"damaged: no dtype {stored} to write {dtype} in")
    written, size = dtypes[stored], math.prod(shape)
    if form is Form.ZEROS:
        return torch.zeros(shape, dtype=dtype)
    if form is Form.CONSTANT:
        return _read(reader.take(written.itemsize), written, dtype)[0].expand(shape).clone()
    if form is Form.PLAIN:
        return _read(reader.take(size * written.itemsize), written, dtype).view(shape)
    if form is Form.PRESSED:
        return _read(_unpressed(reader, size, written.itemsize), written, dtype).view(shape)
    if form is Form.TABLE:
        below, above = reader.number(), reader.number()
        if max(below, above) > MAX_LEVEL:
            raise DataError(f"damaged: a table of {max(below, above):,} values; at most {MAX_LEVEL:,}")
        values = _read(reader.take((below + above) * written.itemsize), written, dtype)
        table = torch.cat([values[:below].flip(0), torch.zeros(1, dtype=dtype), values[below:]])
        return lambda levels: _of_table(levels, table, below)
    step = 1.0 if dtype not in _FLOATS else _read_step(reader)
    return lambda levels: _of_grid(levels, step, dtype)


# ---- levels ------------------------------------------------------------------------------------------------

_Found = tuple[np.ndarray, int, bytes]
"""The levels of the different values, the dtype that is written, and the payload."""


@dataclass(frozen=True, eq=False)
class _Outwards:
    """The different values of a tensor but that of bits 0, from 0 outwards: the negative, then the positive.

    Attributes:
        values: in this order.
        places: of each among the different bits in their own order.
        below: how many are negative.
    """

    values: Tensor
    places: np.ndarray
    below: int

    @classmethod
    def of(cls, distinct: np.ndarray, dtype: torch.dtype) -> _Outwards:
        top = 8 * distinct.itemsize - 1
        if dtype in (torch.bool, torch.uint8):
            negative, size = np.zeros(len(distinct), bool), distinct
        elif dtype in _FLOATS:
            negative = distinct >> top != 0
            size = distinct & distinct.dtype.type((1 << top) - 1)  # as large as the value, but for NaN
        else:
            negative, size = distinct >> top != 0, np.abs(distinct.view(f"i{distinct.itemsize}"))
            size = size.view(distinct.dtype)  # the least number has no absolute value but as an unsigned one
        order = np.lexsort((size, ~negative))
        places = order[distinct[order] != 0]
        bits = torch.from_numpy(distinct[places].view(_numpy_of(distinct.itemsize)))
        return cls(bits.view(dtype), places, int(negative.sum()))

    @property
    def ranks(self) -> np.ndarray:
        """From 1 and from -1 outwards."""
        above = len(self.places) - self.below
        return np.concatenate([-np.arange(1, self.below + 1), np.arange(1, above + 1)])


def _table(outwards: _Outwards) -> _Found | None:
    """Ranks as levels, and the values; None if there are too many."""
    ranks = outwards.ranks
    if np.abs(ranks).max(initial=0) > MAX_LEVEL:
        return None
    stored, payload = _written(outwards.values)
    counts = varint(outwards.below) + varint(len(ranks) - outwards.below)
    return ranks, stored, counts + payload


def _grid(outwards: _Outwards) -> _Found | None:
    """Multiples of a step as levels, and the step: each value is the level times the step in float64, rounded
    to the tensor's dtype. Whole numbers are their own levels."""
    if outwards.values.dtype not in _FLOATS:
        whole = outwards.values.to(torch.int64)
        return (whole.numpy(), 0, b"") if bool((whole.abs() <= MAX_LEVEL).all()) else None
    values = outwards.values.to(torch.float64).numpy()
    if not np.isfinite(values).all() or (values == 0).any():
        return None
    digits = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
    sizes = np.unique(np.abs(values))
    for divisor in range(1, MAX_DIVISOR + 1):
        for step in _steps(sizes, divisor, digits[outwards.values.dtype]):
            levels = np.rint(values / step)
            if np.abs(levels).max() > MAX_LEVEL:
                continue
            rounded = torch.from_numpy(levels * step).to(outwards.values.dtype)
            if np.array_equal(bits_of(rounded), bits_of(outwards.values)):
                written = struct.pack(">d", step).rstrip(b"\0")
                return levels.astype(np.int64), 0, varint(len(written)) + written
    return None


def _steps(sizes: np.ndarray, divisor: int, digits: int) -> Iterator[float]:
    """Steps of which the sizes may be multiples when rounded, the least its `divisor`-fold; short ones first.

    Args:
        sizes: ascending.
        divisor: how many steps the least of them is.
        digits: of the binary fractions that they were rounded to.
    """
    low, high = 0.0, math.inf
    for size in sizes.tolist():
        times = divisor if high == math.inf else round(size / ((low + high) / 2))
        half = math.ldexp(0.5, math.frexp(size)[1] - digits)
        low, high = max(low, (size - half) / times), min(high, (size + half) / times)
        if low > high or times > MAX_LEVEL:
            return
    exponent = math.frexp(high)[1]
    for length in range(1, 54):
        step = math.ldexp(math.floor(math.ldexp(high, length - exponent)), exponent - length)
        if step >= low:
            yield step
            return


def _read_step(reader: Reader) -> float:
    written = reader.take(min(reader.number(), 9))
    if len(written) > 8:
        raise DataError("damaged: the step of a grid has more than 8 bytes")
    (step,) = struct.unpack(">d", written.ljust(8, b"\0"))
    return float(step)


def _of_table(levels: np.ndarray, table: Tensor, below: int) -> Tensor:
    if levels.size and (int(levels.min()) < -below or int(levels.max()) >= len(table) - below):
        raise DataError("damaged: a level has no value")
    return table[torch.from_numpy(levels.astype(np.int64)) + below]


def _of_grid(levels: np.ndarray, step: float, dtype: torch.dtype) -> Tensor:
    if dtype in _FLOATS:
        return (torch.from_numpy(levels.astype(np.float64)) * step).to(dtype)
    values = torch.from_numpy(levels)
    found = values.to(dtype)
    if not torch.equal(found.to(values.dtype), values):
        raise DataError(f"damaged: a level is no value of {dtype}")
    return found


# ---- values ------------------------------------------------------------------------------------------------


def _written(value: Tensor) -> tuple[int, bytes]:
    """The shortest dtype that holds all values, by its place in `storable`, and them as bytes."""
    dtypes = storable(value.dtype)
    for dtype in sorted(dtypes, key=lambda each: each.itemsize):
        short = value.to(dtype)
        # how a NaN is converted is not the same everywhere
        exact = np.array_equal(bits_of(short.to(value.dtype)), bits_of(value)) and not short.isnan().any()
        if dtype == value.dtype or exact:
            break
    return dtypes.index(dtype), _little(bits_of(short)).tobytes()


def _read(data: bytes, written: torch.dtype, dtype: torch.dtype) -> Tensor:
    size = written.itemsize
    if written == torch.bool and max(data, default=0) > 1:
        raise DataError("damaged: a truth value is neither 0 nor 1")
    whole = np.frombuffer(data, f"<u{size}").astype(f"u{size}").view(_numpy_of(size))
    return torch.from_numpy(whole).view(written).to(dtype)


def _pressed(data: bytes, size: int) -> bytes:
    """Values of so many bytes: first bytes of all, then second bytes; deflated."""
    press = zlib.compressobj(6, zlib.DEFLATED, -15)
    planes = np.frombuffer(data, np.uint8).reshape(-1, size).T.tobytes()
    found = press.compress(planes) + press.flush()
    return varint(len(found)) + found


def _unpressed(reader: Reader, count: int, size: int) -> bytes:
    pressed = reader.take(reader.number())
    unpress = zlib.decompressobj(-15)
    try:
        planes = unpress.decompress(pressed, count * size + 1)
    except zlib.error as error:
        raise DataError(f"damaged: a tensor cannot be inflated ({error})") from None
    if len(planes) != count * size or not unpress.eof or unpress.unused_data:
        raise DataError(f"damaged: a tensor of {count * size:,} bytes inflates to {len(planes):,}")
    return np.frombuffer(planes, np.uint8).reshape(size, count).T.tobytes()


def _little(whole: np.ndarray) -> np.ndarray:
    return whole.astype(whole.dtype.newbyteorder("<"), copy=False)


def _numpy_of(size: int) -> str:
    """The integers that torch and NumPy share, of so many bytes."""
    return "u1" if size == 1 else f"i{size}"
