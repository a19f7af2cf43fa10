"""Layers of integers as bytes, and back: adaptive contexts and range coding."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit.compress.adaptive_bits import Numbers
from prunekit.compress.levels import LevelModel
from prunekit.compress.logistic import BitCoder
from prunekit.compress.positions import PositionModel
from prunekit.compress.range_coder import BitCounter, BitDecoder, BitEncoder
from prunekit.errors import DataError, InputError, shown

MAX_LEVEL = (1 << 12) - 1
"""The greatest magnitude of a level."""

MAX_WEIGHTS = 1 << 30
"""The most weights of all layers together that are read."""

MAX_SIDES = 32
"""The most dimensions of a layer."""

_LONG = 1 << 15  # sides beyond that are folded: each row and column has a number of its own

Plane = tuple[int, int]


def encode_levels(layers: Sequence[Any], planes: Sequence[Plane | None] | None = None) -> bytes:
    """The levels of layers as bytes.

    Shapes and planes are not among them: whoever reads the bytes says them again.

    Args:
        layers: integers of any shape, outputs first, from -4,095 to 4,095; 0 is no weight.
        planes: for each layer height and width of a plane in which its inputs are laid out, row by row, such
            as the pixels of an image; None where there is none, and for convolutions, which have channels x
            places in the kernel.

    Raises:
        InputError: for levels that are no integers or out of range, and planes that do not fit.
    """
    arrays = [np.asarray(layer) for layer in layers]
    for number, array in enumerate(arrays):
        if array.dtype.kind not in "iu":
            raise InputError(f"layer {number}: levels must be integers, not {array.dtype}")
        if array.size and max(int(array.max()), -int(array.min())) > MAX_LEVEL:
            raise InputError(f"layer {number}: levels must be from {-MAX_LEVEL:,} to {MAX_LEVEL:,}")
    encoder = BitEncoder()
    model = _LayerModel(encoder, encoder)
    for array, plane in zip(arrays, _checked(planes, [array.shape for array in arrays]), strict=True):
        model.code(array.astype(np.int32), plane)
    return encoder.finish()


def measure_levels(
    layers: Sequence[np.ndarray], planes: Sequence[Plane | None] | None = None
) -> list[tuple[float, float]]:
    """The bits that `encode_levels` takes for each layer: of its values, and of its positions.

    Args:
        layers, planes: as of `encode_levels`.
    """
    values, positions = BitCounter(), BitCounter()
    model, found = _LayerModel(positions, values), []
    for layer, plane in zip(layers, _checked(planes, [layer.shape for layer in layers]), strict=True):
        before = values.bits, positions.bits
        model.code(layer.astype(np.int32), plane)
        found.append((values.bits - before[0], positions.bits - before[1]))
    return found


def decode_levels(
    data: bytes,
    shapes: Sequence[Sequence[int]],
    planes: Sequence[Plane | None] | None = None,
    *,
    max_weights: int = MAX_WEIGHTS,
) -> Iterator[np.ndarray]:
    """The layers that were encoded, int32, one after the other as they are read.

    Bytes that `encode_levels` does not write are refused, those behind its last one when all layers are read;
    others that are damaged give other levels: a checksum is for the caller to keep. Time and memory depend on
    the shapes alone.

    Args:
        data: from `encode_levels`.
        shapes: of the layers, as encoded.
        planes: as encoded.
        max_weights: the most that all shapes may add up to.

    Raises:
        DataError: for shapes beyond that or that no array has, before anything is allocated; for bytes that
            cannot be read.
        InputError: for planes that do not fit the shapes.
    """
    sizes = [checked_shape(shape) for shape in shapes]
    if sum(map(math.prod, sizes)) > max_weights:
        raise DataError(f"the shapes add up to more than {max_weights:,} weights")
    checked = _checked(planes, sizes)
    return _decoded(data, sizes, checked)


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A layer's shape.

    Raises:
        DataError: if there is no array of that shape.
    """
    try:
        sides = tuple(map(operator.index, shape))
    except TypeError:
        sides = (-1,)
    if len(sides) > MAX_SIDES or min(sides, default=0) < 0 or math.prod(side or 1 for side in sides) >> 48:
        raise DataError(f"there is no layer of shape {shown(shape)}")
    return sides


def _decoded(
    data: bytes, shapes: Sequence[tuple[int, ...]], planes: Sequence[Plane | None]
) -> Iterator[np.ndarray]:
    decoder = BitDecoder(data)
    model = _LayerModel(decoder, decoder)
    for shape, plane in zip(shapes, planes, strict=True):
        yield model.code(np.zeros(shape, np.int32), plane)
    decoder.finish()


class _LayerModel:
    """Codes layers one after the other.

    Args:
        positions: writes or reads the bits of positions.
        values: writes or reads those of values: the same, but where bits are counted.
    """

    def __init__(self, positions: BitCoder, values: BitCoder) -> None:
        self._coder = values
        self._positions = PositionModel(positions)
        self._levels = LevelModel(values)

    def code(self, layer: np.ndarray, plane: Plane | None) -> np.ndarray:
        """The layer, written or read."""
        if layer.size == 0:
            return layer
        layout = _Layout.of(layer.shape, plane)
        matrix, grid = layout.matrix_of(layer), layout.grid
        lowest = Numbers(self._coder, MAX_LEVEL).code(max(-int(matrix.min()), 0))
        highest = Numbers(self._coder, MAX_LEVEL).code(max(int(matrix.max()), 0))
        if lowest or highest:
            present = (matrix != 0).astype(np.int8)
            self._positions.code(present, grid)
            self._levels.code(matrix, present, lowest, highest, grid)
        return layout.layer_of(matrix)


@dataclass(frozen=True)
class _Layout:
    """How a layer becomes a matrix of (outputs, inputs).

    It is turned round if it is tall and narrow. Sides longer than `_LONG` are folded: the rows are then of
    one length, whatever the shape, and the last one is filled up with zeros.
    """

    shape: tuple[int, ...]
    rows: int
    columns: int
    grid: Plane
    turned: bool = False

    @classmethod
    def of(cls, shape: tuple[int, ...], plane: Plane | None) -> _Layout:
        size = math.prod(shape)
        rows = shape[0] if len(shape) > 1 else 1
        columns = size // rows
        if max(rows, columns) > _LONG:
            width = 1 << (math.isqrt(size).bit_length())
            return cls(shape, -(-size // width), width, (1, width))
        if plane is None and 16 * columns < rows:
            return cls(shape, rows, columns, (1, rows), turned=True)
        if plane is None:
            plane = (shape[1], columns // shape[1]) if len(shape) > 2 else (1, columns)
        return cls(shape, rows, columns, plane)

    def matrix_of(self, layer: np.ndarray) -> np.ndarray:
        matrix = np.zeros((self.rows, self.columns), layer.dtype)
        matrix.ravel()[: layer.size] = layer.ravel()
        return np.ascontiguousarray(matrix.T) if self.turned else matrix

    def layer_of(self, matrix: np.ndarray) -> np.ndarray:
        flat = (matrix.T if self.turned else matrix).ravel()
        return flat[: math.prod(self.shape)].reshape(self.shape)


def _checked(
    planes: Sequence[Plane | None] | None, shapes: Sequence[tuple[int, ...]]
) -> Sequence[Plane | None]:
    if planes is None:
        return [None] * len(shapes)
    if len(planes) != len(shapes):
        raise InputError(f"there are {len(shapes)} layers and {len(planes)} planes")
    return [_checked_plane(number, *each) for number, each in enumerate(zip(planes, shapes, strict=True))]


def _checked_plane(number: int, plane: Plane | None, shape: tuple[int, ...]) -> Plane | None:
    if plane is None:
        return None
    columns = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    try:
        height, width = map(operator.index, plane)
    except (TypeError, ValueError):
        raise InputError(f"layer {number}: a plane is (height, width), not {shown(plane)}") from None
    if min(height, width) < 1 or height * width != columns:
        raise InputError(f"layer {number}: a plane of {shown(plane)} does not hold {columns:,} inputs")
    return height, width
