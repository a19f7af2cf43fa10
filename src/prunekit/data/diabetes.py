"""Pima Indians diabetes (Smith et al. 1988), once at UCI."""

from __future__ import annotations

from prunekit.data.assemble import Raw, assemble
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Download, Source, Store
from prunekit.data.table import labels, numbers, read_rows

DIABETES = Source(
    dataset="diabetes",
    files=(("pima-indians-diabetes.csv", "pima-indians-diabetes.data", "pima-indians-diabetes.data.csv"),),
    folders=("uci", "diabetes", "."),
    # UCI has withdrawn the set; this copy of its file is the one that is commonly used.
    mirrors=("https://raw.githubusercontent.com/jbrownlee/Datasets/master",),
    downloads=(
        Download(name="pima-indians-diabetes.data.csv", checksum="md5:56a8d8ae619fcc223941e54f361b8406"),
    ),
    into="uci",
)


def load_diabetes(settings: DataSettings, store: Store, source: Source = DIABETES) -> Dataset:
    """768 women, without (0) or with (1) diabetes within five years: 8 clinical measurements.

    A zero in glucose, blood pressure, skin thickness, insulin or body mass stands for a missing value; it is
    kept, as it is in the published results on this set.

    Raises:
        DataError: if the file cannot be had, or is not this table.
    """
    (path,) = store.fetch(source)
    rows = read_rows(path, rows=768, columns=9)
    raw = Raw(
        numbers(path, [row[:8] for row in rows], low=0, high=1000),
        labels(path, [row[8] for row in rows], {"0": 0, "1": 1}),
    )
    return assemble("diabetes", raw, settings, classes=2)
