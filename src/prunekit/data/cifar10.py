"""CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images), the binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunekit.data.assemble import Raw, assemble
from prunekit.data.reading import damaged, read_bytes
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Download, Source, Store

CIFAR10 = Source(
    dataset="cifar10",
    files=(*((f"data_batch_{number}.bin",) for number in range(1, 6)), ("test_batch.bin",)),
    folders=("cifar10/cifar-10-batches-bin", "cifar-10-batches-bin", "cifar10"),
    mirrors=("https://www.cs.toronto.edu/~kriz",),
    downloads=(Download("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),),
    into="cifar10",
)
RECORD = 1 + 3 * 32 * 32  # the class, then the red, the green and the blue plane, row by row


def load_cifar10(settings: DataSettings, store: Store, source: Source = CIFAR10) -> Dataset:
    """50,000 training and 10,000 test images (3, 32, 32) of ten kinds of things, in colour.

    Files with fewer records are read too.

    Raises:
        DataError: if the files cannot be had, or one is not a whole number of records of ten classes.
    """
    *batches, test = store.fetch(source)
    read = [_read_batch(path) for path in batches]
    train = Raw(np.concatenate([batch.inputs for batch in read]), np.concatenate([b.targets for b in read]))
    del read  # 150 MB that are not needed beside the floating-point copy
    return assemble("cifar10", train, settings, classes=10, test=_read_batch(test))


def _read_batch(path: Path) -> Raw:
    content = read_bytes(path)
    whole, rest = divmod(len(content), RECORD)
    if rest:
        raise damaged(
            path,
            f"the file is truncated: {len(content)} bytes found, expected a multiple of {RECORD} "
            f"({whole * RECORD} or {(whole + 1) * RECORD})",
        )
    records = np.frombuffer(content, np.uint8).reshape(whole, RECORD)
    targets = records[:, 0].astype(np.int64)
    if targets.max() > 9:
        raise damaged(
            path, f"record {int(targets.argmax()) + 1} has the class {targets.max()}, expected 0 to 9"
        )
    return Raw(records[:, 1:].reshape(whole, 3, 32, 32), targets)
