"""Range coding of bits whose probabilities a model says: the encoder and the decoder look the same to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prunekit.compress.logistic import ONE
from prunekit.errors import DataError
from prunekit.extras import imported

_DAMAGED = "damaged: the coded bits cannot have been written by this coder"


def _stream() -> Any:
    return imported("constriction", "A packed file").stream


class _Bernoulli:
    """The coder's models of bits."""

    def __init__(self) -> None:
        self._kind = _stream().model.Bernoulli
        self.of_each = self._kind(perfect=False)

    def of(self, probability: int) -> Any:
        """For bits that are one with this probability."""
        return self._kind(probability / ONE, perfect=False)


class BitEncoder:
    """Bits to bytes."""

    def __init__(self) -> None:
        self._coder, self._model = _stream().queue.RangeEncoder(), _Bernoulli()

    def code(self, probabilities: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """The bits, which are added to the bytes.

        Args:
            probabilities: of ones, of 16 bits.
            bits: int64, of the same length.
        """
        self._coder.encode(bits.astype(np.int32), self._model.of_each, probabilities / ONE)
        return bits

    def code_one(self, probability: int, bit: int) -> int:
        """As `code`, of a single bit."""
        self._coder.encode(bit, self._model.of(probability))
        return bit

    def finish(self) -> bytes:
        """All bytes. Zeros at the end are left out, and the decoder puts them back."""
        return self._coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


class BitDecoder:
    """Bytes to bits. Damaged bytes give other bits, or a `DataError`."""

    def __init__(self, data: bytes) -> None:
        self._data, self._again, self._model = bytes(data), BitEncoder(), _Bernoulli()
        padded = bytes(data) + b"\0" * (-len(data) % 4)
        self._coder = _stream().queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def code(self, probabilities: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """The next bits.

        Args:
            probabilities: of ones, of 16 bits.
            bits: not looked at; here so that a model can be written once for both directions.
        """
        try:
            found = self._coder.decode(self._model.of_each, probabilities / ONE).astype(np.int64)
        except AssertionError as error:
            raise DataError(_DAMAGED) from error
        return self._again.code(probabilities, found)

    def code_one(self, probability: int, bit: int) -> int:
        """As `code`, of a single bit."""
        try:
            found = int(self._coder.decode(self._model.of(probability)))
        except AssertionError as error:
            raise DataError(_DAMAGED) from error
        return self._again.code_one(probability, found)

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

    def code_one(self, probability: int, bit: int) -> int:
        """As `code`, of a single bit."""
        self.bits -= math.log2((probability if bit else ONE - probability) / ONE)
        return bit
