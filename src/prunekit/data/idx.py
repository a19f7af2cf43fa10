"""The IDX format of MNIST: a magic number, the dimensions, then the bytes.

Source: the description of the file format at http://yann.lecun.com/exdb/mnist/ : two zero bytes, one byte
for the type (8 = unsigned byte), one for the number of dimensions, each dimension as a big-endian 32-bit
number, then the values, the last dimension running fastest.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit.data.reading import damaged, read_bytes


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzipped or not; read-only, with the shape from its header.

    Raises:
        DataError: if the file is of another kind, has another number of dimensions, or holds more or fewer
            bytes than its header announces.
    """
    content = read_bytes(path)
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise damaged(path, f"the magic number is {content[:4].hex()}, expected {magic.hex()}")
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise damaged(path, f"the header is truncated: {len(content)} bytes found, {header} expected")
    shape = [int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4)]
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise damaged(
            path,
            f"{len(content)} bytes found, {expected} expected for the shape {tuple(shape)} in its header",
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
