"""Iris (Fisher 1936), UCI."""

from __future__ import annotations

import numpy as np

from prunekit.data.assemble import Raw, assemble
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Source, Store
from prunekit.data.table import labels, numbers, read_rows

IRIS = Source(dataset="iris", files=(("iris.csv", "iris.data"),), folders=("uci", "iris", "."))
CLASSES = {"Iris-setosa": 0, "Iris-versicolor": 1, "Iris-virginica": 2}


def load_iris(settings: DataSettings, store: Store, source: Source = IRIS) -> Dataset:
    """150 flowers of 3 species: length and width of sepal and petal, in cm.

    Read from UCI's file where there is one, else from the copy inside scikit-learn. The two differ in two
    flowers (the 35th and the 38th), where scikit-learn follows Fisher's article and UCI does not.

    Raises:
        DataError: if a file is there but is not UCI's table.
    """
    found = store.find(source)
    if found is None:
        from sklearn.datasets import load_iris as bundled  # slow to import, and few need it

        copy = bundled()
        raw = Raw(copy.data.astype(np.float64), copy.target.astype(np.int64))
    else:
        (path,) = found
        rows = read_rows(path, rows=150, columns=5)
        raw = Raw(
            numbers(path, [row[:4] for row in rows], low=0, high=10),
            labels(path, [row[4] for row in rows], CLASSES),
        )
    return assemble("iris", raw, settings, classes=3)
