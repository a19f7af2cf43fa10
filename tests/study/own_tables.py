"""Datasets of a user's own, as `own_tables:...` in a study; examples are drawn from the number in a file."""

import os
from pathlib import Path

import torch

from prunekit.data import Dataset, from_tensors


def table(seed: int = 0) -> Dataset:
    drawn = torch.Generator().manual_seed(int(Path(os.environ["OWN_TABLE"]).read_text()))
    inputs = torch.randn(120, 4, generator=drawn)
    return from_tensors((inputs, inputs[:, :3].argmax(1)), seed=seed)


def asks_for_nothing() -> Dataset:
    return table()


def folder(data_dir, test: float, validation: float) -> Dataset:
    assert data_dir == Path("somewhere")
    return from_tensors(
        (torch.arange(40.0)[:, None], torch.arange(40) % 2),
        test_fraction=test,
        validation_fraction=validation,
    )


def has_an_argument_that_is_never_given(more_test: int = 0) -> Dataset:
    return table()


def fails() -> Dataset:
    raise KeyError("length")


def another() -> Dataset:
    return [1, 2]


def says_nothing():
    raise AssertionError("this is not to be called")


def needs(path) -> Dataset:
    raise AssertionError("this is not to be called")
