"""Breast cancer Wisconsin, the original set of 1992 (Wolberg & Mangasarian 1990), UCI."""

from __future__ import annotations

from prunekit.data.assemble import Raw, assemble
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Download, Source, Store
from prunekit.data.table import labels, numbers, read_rows

BREAST_CANCER = Source(
    dataset="breast_cancer",
    files=(("breast-cancer-wisconsin.csv", "breast-cancer-wisconsin.data"),),
    folders=("uci", "breast_cancer", "."),
    mirrors=(
        "https://archive.ics.uci.edu/ml/machine-learning-databases/breast-cancer-wisconsin",
        "https://raw.githubusercontent.com/jbrownlee/Datasets/master",
    ),
    downloads=(
        Download(
            name="breast-cancer-wisconsin.data",
            checksum="sha256:402c585309c399237740f635ef9919dc512cca12cbeb20de5e563a4593f22b64",
        ),
    ),
    into="uci",
)
CLASSES = {"2": 0, "4": 1}


def load_breast_cancer(settings: DataSettings, store: Store, source: Source = BREAST_CANCER) -> Dataset:
    """683 tumours, benign (0) or malignant (1): 9 cytological grades from 1 to 10.

    The 16 of the 699 rows that lack a grade ("?") are left out. UCI's file (.data) begins each row with a
    sample code, which is dropped; the file .csv is the same without it.

    Raises:
        DataError: if the file cannot be had, or is not this table.
    """
    (path,) = store.fetch(source)
    with_code = path.suffix == ".data"
    rows = read_rows(path, rows=699, columns=11 if with_code else 10)
    complete = [row[with_code:] for row in rows if "?" not in row]
    raw = Raw(
        numbers(path, [row[:9] for row in complete], low=1, high=10),
        labels(path, [row[9] for row in complete], CLASSES),
    )
    return assemble("breast_cancer", raw, settings, classes=2)
