"""Datasets of images: MNIST, Fashion-MNIST, CIFAR-10 and digits.

Source of the IDX format, in which MNIST and Fashion-MNIST come: its description at
http://yann.lecun.com/exdb/mnist/ : two zero bytes, one byte for the type (8 = unsigned byte), one for the
number of dimensions, each dimension as a big-endian 32-bit number, then the values, the last dimension
running fastest.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit.data.dataset import Dataset, DataSettings, Raw, assemble
from prunekit.data.store import SOURCES, Source, Store, damaged, read_bytes, table_inside_sklearn


def load_mnist(settings: DataSettings, store: Store, source: Source = SOURCES["mnist"]) -> Dataset:
    """60,000 training and 10,000 test images (1, 28, 28) of the ten digits, in grey.

    Source: LeCun, Cortes & Burges 1998.

    Also reads any other set that has these files, as `source` says.

    Raises:
        DataError: if the files cannot be had, are damaged, or do not fit each other.
    """
    train_images, train_labels, test_images, test_labels = store.fetch(source)
    train = _read_mnist(train_images, train_labels)
    test = _read_mnist(test_images, test_labels)
    return assemble(train, settings, classes=10, test=test)


def _read_mnist(image_file: Path, label_file: Path) -> Raw:
    images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
    if images.shape[1:] != (28, 28):
        raise damaged(image_file, f"the images have the size {images.shape[1:]}, expected (28, 28)")
    if len(images) != len(labels):
        raise damaged(label_file, f"{len(labels)} labels found, expected {len(images)} as there are images")
    if len(labels) == 0:
        raise damaged(label_file, "there is no label in it")
    if labels.max() > 9:
        raise damaged(label_file, f"a label is {labels.max()}, expected 0 to 9")
    return Raw(images[:, None], labels.astype(np.int64))


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


def load_fashion_mnist(
    settings: DataSettings, store: Store, source: Source = SOURCES["fashion_mnist"]
) -> Dataset:
    """60,000 training and 10,000 test images (1, 28, 28) of ten kinds of clothes, in grey.

    Source: Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747.

    Raises:
        DataError: if the files cannot be had, are damaged, or do not fit each other.
    """
    return load_mnist(settings, store, source)


CIFAR10_RECORD = 1 + 3 * 32 * 32  # the class, then the red, the green and the blue plane, row by row


def load_cifar10(settings: DataSettings, store: Store, source: Source = SOURCES["cifar10"]) -> Dataset:
    """50,000 training and 10,000 test images (3, 32, 32) of ten kinds of things, in colour.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images; the binary version.

    Files with fewer records are read too.

    Raises:
        DataError: if the files cannot be had, or one is not a whole number of records of ten classes.
    """
    *batches, test = store.fetch(source)
    read = [_read_cifar10(path) for path in batches]
    train = Raw(np.concatenate([batch.inputs for batch in read]), np.concatenate([b.targets for b in read]))
    del read  # 150 MB that are not needed beside the floating-point copy
    return assemble(train, settings, classes=10, test=_read_cifar10(test))


def _read_cifar10(path: Path) -> Raw:
    content = read_bytes(path)
    whole, rest = divmod(len(content), CIFAR10_RECORD)
    if rest:
        raise damaged(
            path,
            f"the file is truncated: {len(content)} bytes found, expected a multiple of {CIFAR10_RECORD} "
            f"({whole * CIFAR10_RECORD} or {(whole + 1) * CIFAR10_RECORD})",
        )
    records = np.frombuffer(content, np.uint8).reshape(whole, CIFAR10_RECORD)
    targets = records[:, 0].astype(np.int64)
    if targets.max() > 9:
        raise damaged(
            path, f"record {int(targets.argmax()) + 1} has the class {targets.max()}, expected 0 to 9"
        )
    return Raw(records[:, 1:].reshape(whole, 3, 32, 32), targets)


def load_digits(settings: DataSettings, store: Store) -> Dataset:
    """1,797 images (1, 8, 8) of the ten digits, grey levels 0 to 16; nothing is read or downloaded.

    Source: Alpaydin & Kaynak 1998, Optical recognition of handwritten digits, UCI; scikit-learn's copy.
    """
    rows = table_inside_sklearn("digits.csv.gz", "The data set digits")
    images = rows[:, :64].reshape(-1, 1, 8, 8).astype(np.uint8)
    return assemble(Raw(images, rows[:, 64].astype(np.int64)), settings, classes=10)
