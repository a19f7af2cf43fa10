"""Optical recognition of handwritten digits (Alpaydin & Kaynak 1998), UCI; the copy inside scikit-learn."""

from __future__ import annotations

import numpy as np

from prunekit.data.assemble import Raw, assemble
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Store


def load_digits(settings: DataSettings, store: Store) -> Dataset:
    """1,797 images (1, 8, 8) of the ten digits, grey levels 0 to 16; nothing is read or downloaded."""
    from sklearn.datasets import load_digits as bundled  # slow to import, and few need it

    found = bundled()
    images = found.images[:, None].astype(np.uint8)
    return assemble("digits", Raw(images, found.target.astype(np.int64)), settings, classes=10)
