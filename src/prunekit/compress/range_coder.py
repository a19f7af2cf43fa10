"""Range coding of bits whose probabilities a model says: the encoder and the decoder look the same to it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from prunekit.compress.logistic import ONE
from prunekit.errors import DataError
from prunekit.extras import imported

_DAMAGED = "damaged: the coded bits cannot have been written by this coder"


def _stream() -> Any:
    return imported("constriction", "A packed file").stream


@cache
def _bernoulli() -> Any:
    return _stream().model.Bernoulli(perfect=False)


class BitEncoder:
    """Bits to bytes."""

    def __init__(self) -> None:
        self._coder = _stream().queue.RangeEncoder()

    def code(self, probabilities: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """The bits, which are added to the bytes.

        Args:
            probabilities: of ones, of 16 bits.
            bits: int64, of the same length.
        """
        self._coder.encode(bits.astype(np.int32), _bernoulli(), probabilities / ONE)
        return bits

    def finish(self) -> bytes:
        """All bytes. Zeros at the end are left out, and the decoder puts them back."""
        return self._coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


class BitDecoder:
    """Bytes to bits. Damaged bytes give other bits, or a `DataError`."""

    def __init__(self, data: bytes) -> None:
        self._data, self._again = bytes(data), BitEncoder()
        padded = bytes(data) + b"\0" * (-len(data) % 4)
        self._coder = _stream().queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def code(self, probabilities: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """The next bits.

        Args:
            probabilities: of ones, of 16 bits.
            bits: not looked at; here so that a model can be written once for both directions.
        """
        try:
            found = self._coder.decode(_bernoulli(), probabilities / ONE).astype(np.int64)
        except AssertionError as error:
            raise DataError(_DAMAGED) from error
        return self._again.code(probabilities, found)

    def finish(self) -> None:
        """Compare the bytes with those of the bits that were read.

        Raises:
            DataError: if they are others, or more stand behind them.
        """
        if self._again.finish() != self._data:
            raise DataError(_DAMAGED)


class BitCounter:
    """What bits would take, by their probabilities.

    Attributes:
        bits: of all so far.
    """

    def __init__(self) -> None:
        self.bits = 0.0

    def code(self, probabilities: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """The bits, which are counted.

        Args:
            probabilities: of ones, of 16 bits.
            bits: int64, of the same length.
        """
        chances = np.where(bits > 0, probabilities, ONE - probabilities) / ONE
        self.bits -= float(np.log2(chances).sum())
        return bits
