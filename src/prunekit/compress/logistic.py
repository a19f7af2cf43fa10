"""Integer logistic mixing: probabilities of bits, joined by weights that are learned while coding.

Encoder and decoder run the same model and must come to the same numbers on every machine. So all of it is
integer arithmetic, and the two tables are made by `decimal`, whose results are the same everywhere.

Probabilities are of 16 bits (1 to 65,535 stand for p times 65,536). Their logits are of 10 bits after the
point, weights of 16.

Source: Mahoney 2005, "Adaptive weighing of context models for lossless data compression"; lpaq.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal
from functools import lru_cache
from typing import Protocol

import numpy as np

ONE = 1 << 16
LOGIT_ONE = 1 << 10
_MOST = 11_360  # just above LOGIT_ONE x ln(65,535)


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of all logits from -_MOST to _MOST, and logits of all numbers from 0 to ONE."""
    context = Context(prec=25)
    upper = []
    factor = context.exp(context.divide(Decimal(-1), Decimal(LOGIT_ONE)))  # exp(-1/1024)
    power = Decimal(1)
    for _ in range(_MOST + 1):
        upper.append(int(context.divide(Decimal(ONE), context.add(Decimal(1), power)).to_integral_value()))
        power = context.multiply(power, factor)
    half = np.array(upper, np.int64)
    squashed = np.clip(np.concatenate([ONE - half[:0:-1], half]), 1, ONE - 1)
    probabilities = np.clip(np.arange(ONE + 1), 1, ONE - 1)
    logits = np.searchsorted(squashed, probabilities) - _MOST
    # the middle of the logits that have this probability: squash(stretch(p)) = p where there is one
    after = np.searchsorted(squashed, probabilities, side="right") - 1 - _MOST
    return squashed, (logits + np.maximum(after, logits)) >> 1


def squash(logits: np.ndarray) -> np.ndarray:
    """The probabilities of logits."""
    return _tables()[0].take(logits + _MOST, mode="clip")


def stretch(probabilities: np.ndarray | int) -> np.ndarray:
    """The logits of probabilities; those out of range become the nearest in range."""
    return _tables()[1].take(probabilities, mode="clip")


class BitCoder(Protocol):
    """Writes bits to bytes, or reads them.

    What codes is so written once for both directions: it goes on with the bits that `code` returns.
    """

    def code(self, probabilities: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """The bits; a decoder does not look at those that it is given.

        Args:
            probabilities: of ones, from 1 to 65,535 of 65,536.
            bits: int64, of the same length.
        """
        ...

    def code_one(self, probability: int, bit: int) -> int:
        """As `code`, of a single bit: much faster than arrays of length one."""
        ...


class Mixer:
    """Joins several predictions of the same bits: the weighted sum of their logits.

    The weights follow the gradient of the code length, each divided by its share of the curvature that was
    seen so far. All bits of a call are predicted by the same weights.

    Args:
        initial: the weights to begin with, one for each prediction, 1.0 being full trust.
        inertia: how many bits' worth of curvature hold them there.
    """

    def __init__(self, initial: Sequence[float], inertia: int = 60) -> None:
        self.weights = np.array([round(weight * ONE) for weight in initial], np.int64)
        self._curvature = np.full(len(initial), inertia * ONE, np.int64)

    def code(self, coder: BitCoder, logits: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Code bits by the joint prediction, and move the weights to where they would have cost less.

        Args:
            coder: writes or reads the bits.
            logits: (predictions, bits).
            bits: what to write; a decoder does not look at them.
        """
        probabilities = squash(self.weights @ logits >> 16)
        bits = coder.code(probabilities, bits)
        errors = bits * ONE - probabilities  # 16 bits after the point
        gradient = logits @ errors  # 26 bits
        variance = probabilities * (ONE - probabilities) >> 16
        self._curvature += (logits * logits * variance >> 20).sum(1)  # 16 bits
        self.weights += gradient * 64 // (self._curvature * len(self.weights))
        return bits
