"""Datasets of text, to be continued character by character."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from prunekit.data.dataset import Dataset, DataSettings, Split
from prunekit.data.store import SOURCES, Store, damaged, read_bytes
from prunekit.errors import InputError
from prunekit.seeds import derive

CONTEXT = 64
"""Characters of one example."""


def load_tiny_shakespeare(settings: DataSettings, store: Store) -> Dataset:
    """Pieces of 64 characters, and for each character the one that follows it.

    Source: Karpathy 2015; one megabyte of plays.

    Inputs and targets are (N, 64) int64 numbers of the characters that occur, in the order of their code
    points. The parts are stretches of the text and are not drawn at random, so that no piece of one lies
    between pieces of another: the test part is its end, the validation part what stands before. Pieces do not
    overlap; those of the training part are shuffled.

    Raises:
        DataError: if the file cannot be had, or is no text.
        InputError: if a part would hold no piece.
    """
    (path,) = store.fetch(SOURCES["tiny_shakespeare"])
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"it is no text in UTF-8: {error}") from None
    numbers = _numbers(text)
    test_at = round(len(numbers) * (1 - settings.test))
    validation_at = round(test_at * (1 - settings.validation))
    bounds = {"train": (0, validation_at), "validation": (validation_at, test_at), "test": (test_at, None)}
    parts = {}
    for part, (start, end) in bounds.items():
        pieces = _pieces(numbers[start:end])
        if not len(pieces):
            raise InputError(f"tiny_shakespeare: the {part} part has fewer than {CONTEXT + 1} characters")
        if part == "train":
            order = np.random.default_rng(derive(settings.seed, "order of the text")).permutation(len(pieces))
            pieces = pieces[order[: settings.limit]]
        both = torch.from_numpy(pieces)
        parts[part] = Split(both[:, :-1].contiguous(), both[:, 1:].contiguous())
    return Dataset(name="tiny_shakespeare", task="classification", outputs=int(numbers.max()) + 1, **parts)


def _numbers(text: str) -> NDArray[np.int64]:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def _pieces(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, CONTEXT + 1): each piece with the character behind it."""
    starts = np.arange(0, len(numbers) - CONTEXT, CONTEXT)
    return numbers[starts[:, None] + np.arange(CONTEXT + 1)]
