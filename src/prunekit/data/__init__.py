"""Datasets as plain tensors: read from a folder or downloaded, split by a seed, standardised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from prunekit.data.dataset import Dataset, DataSettings, Split, TaskKind, from_tensors
from prunekit.data.images import load_cifar10, load_digits, load_fashion_mnist, load_mnist
from prunekit.data.store import Store
from prunekit.data.tabular import (
    load_breast_cancer,
    load_california_housing,
    load_diabetes,
    load_ionosphere,
    load_iris,
    load_waveform,
)
from prunekit.data.texts import load_tiny_shakespeare
from prunekit.errors import DataError, InputError, instead, shown

__all__ = ["LOADERS", "DataSettings", "Dataset", "Split", "TaskKind", "from_tensors", "load", "names"]

LOADERS: Mapping[str, Callable[[DataSettings, Store], Dataset]] = MappingProxyType(
    {
        "breast_cancer": load_breast_cancer,
        "california_housing": load_california_housing,
        "cifar10": load_cifar10,
        "diabetes": load_diabetes,
        "digits": load_digits,
        "fashion_mnist": load_fashion_mnist,
        "ionosphere": load_ionosphere,
        "iris": load_iris,
        "mnist": load_mnist,
        "tiny_shakespeare": load_tiny_shakespeare,
        "waveform": load_waveform,
    }
)
"""Every dataset by name."""


def names() -> list[str]:
    """The names that `load` knows, in alphabetical order."""
    return sorted(LOADERS)


def load(
    settings: DataSettings | str, data_dir: Path | str | None = None, *, download: bool = True
) -> Dataset:
    """A dataset, split and standardised.

    A dataset of the user's own, `package.module:function`, is what that function gives, if its module is
    allowed: see `DataSettings`. What follows is said of the others.

    The files are looked for in `data_dir` (or else in the folder that the environment variable PRUNEKIT_DATA
    names), then in the cache (PRUNEKIT_CACHE, or else the user's cache folder); what is in neither is
    downloaded into the cache and its checksum verified.

    The test part is the official one where there is one, else drawn from the seed (of a text, its end); the
    validation part is drawn from the rest. Classes are drawn in proportion. All inputs but texts are
    standardised, each feature of a table and each channel of images, with the mean and the standard deviation
    of the training part.

    Args:
        settings: which dataset and how to split it; a name alone stands for the defaults.
        data_dir: a folder that holds data in the layouts of the official sources.
        download: whether to download what is not there.

    Raises:
        InputError: for an unknown name, a function that is not allowed, or fractions that leave a part empty.
        DataError: if the files are nowhere to be had, or are damaged; if a function of the user's own fails;
            if the examples are not those of the `content` that is asked for.
    """
    settings = DataSettings(name=settings) if isinstance(settings, str) else DataSettings.parse(settings)
    if settings.is_own:
        data = settings.own(None if data_dir is None else Path(data_dir))
    elif settings.name in LOADERS:
        data = LOADERS[settings.name](settings, Store.open(data_dir, download=download))
    else:
        raise InputError(
            f"there is no dataset {shown(settings.name)}{instead(settings.name, names())}, "
            "and package.module:function for a dataset of your own"
        )
    if settings.content is not None and data.digest() != settings.content:
        raise DataError(
            f"the examples of {settings.name} have the digest {data.digest()}, not {settings.content}: "
            "they are others"
        )
    return data
