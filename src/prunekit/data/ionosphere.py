"""Johns Hopkins University ionosphere database (Sigillito et al. 1989), UCI."""

from __future__ import annotations

from prunekit.data.assemble import Raw, assemble
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Download, Source, Store
from prunekit.data.table import labels, numbers, read_rows

IONOSPHERE = Source(
    dataset="ionosphere",
    files=(("ionosphere.csv", "ionosphere.data"),),
    folders=("uci", "ionosphere", "."),
    mirrors=("https://archive.ics.uci.edu/ml/machine-learning-databases/ionosphere",),
    downloads=(
        Download(
            name="ionosphere.data",
            checksum="sha256:46d52186b84e20be52918adb93e8fb9926b34795ff7504c24350ae0616a04bbd",
        ),
    ),
    into="uci",
)


def load_ionosphere(settings: DataSettings, store: Store, source: Source = IONOSPHERE) -> Dataset:
    """351 radar returns, bad (0) or good (1): 17 complex values in [-1, 1] as 34 features.

    The second feature is zero throughout, in the source too.

    Raises:
        DataError: if the file cannot be had, or is not this table.
    """
    (path,) = store.fetch(source)
    rows = read_rows(path, rows=351, columns=35)
    raw = Raw(
        numbers(path, [row[:34] for row in rows], low=-1, high=1),
        labels(path, [row[34] for row in rows], {"b": 0, "g": 1}),
    )
    return assemble("ionosphere", raw, settings, classes=2)
