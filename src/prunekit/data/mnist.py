"""MNIST handwritten digits (LeCun, Cortes & Burges 1998)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunekit.data.assemble import Raw, assemble
from prunekit.data.idx import read_idx
from prunekit.data.reading import damaged
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Download, Source, Store

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST = Source(
    dataset="mnist",
    files=tuple((f"{name}.gz", name) for name in FILES),
    folders=("mnist", "mnist/raw", "MNIST/raw"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
    downloads=(
        Download("train-images-idx3-ubyte.gz", "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        Download("train-labels-idx1-ubyte.gz", "md5:d53e105ee54ea40749a09fcbcd1e9432"),
        Download("t10k-images-idx3-ubyte.gz", "md5:9fb629c4189551a2d022fa330f9573f3"),
        Download("t10k-labels-idx1-ubyte.gz", "md5:ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    into="mnist",
)


def load_mnist(settings: DataSettings, store: Store, source: Source = MNIST) -> Dataset:
    """60,000 training and 10,000 test images (1, 28, 28) of the ten digits, in grey.

    Also reads any other set that has these files, as `source` says.

    Raises:
        DataError: if the files cannot be had, are damaged, or do not fit each other.
    """
    train_images, train_labels, test_images, test_labels = store.fetch(source)
    train = _read(train_images, train_labels)
    test = _read(test_images, test_labels)
    return assemble(source.dataset, train, settings, classes=10, test=test)


def _read(image_file: Path, label_file: Path) -> Raw:
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
