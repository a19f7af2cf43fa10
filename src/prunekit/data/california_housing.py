"""California housing (Pace & Barry 1997), StatLib; downloaded from the archive that scikit-learn uses."""

from __future__ import annotations

import numpy as np

from prunekit.data.assemble import Raw, assemble
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Download, Source, Store
from prunekit.data.table import numbers, read_rows

CALIFORNIA_HOUSING = Source(
    dataset="california_housing",
    files=(
        ("california_housing.csv.gz", "california_housing.csv", "cal_housing.data.gz", "cal_housing.data"),
    ),
    folders=("uci", "california_housing", "california_housing/CaliforniaHousing", "CaliforniaHousing", "."),
    mirrors=("https://ndownloader.figshare.com/files",),
    downloads=(
        Download(
            name="cal_housing.tgz",
            checksum="sha256:aaa5c9a6afe2225cc2aed2723682ae403280c4a3695a2ddda4ffb5d8215ea681",
            path="5976036",
        ),
    ),
    into="california_housing",
)
COLUMNS = (
    "longitude",
    "latitude",
    "housingMedianAge",
    "totalRooms",
    "totalBedrooms",
    "population",
    "households",
    "medianIncome",
    "medianHouseValue",
)


def load_california_housing(
    settings: DataSettings, store: Store, source: Source = CALIFORNIA_HOUSING
) -> Dataset:
    """20,640 districts of the census of 1990: predict the median house value, in units of 100,000 dollars.

    The 8 features are those of scikit-learn's `fetch_california_housing`, in its order: median income (in
    10,000 dollars), median age of the houses, rooms, bedrooms for each household, population, people for
    each household, latitude, longitude. The targets (N, 1) are not standardised.

    Raises:
        DataError: if the file cannot be had, or is not this table.
    """
    (path,) = store.fetch(source)
    table = numbers(path, read_rows(path, rows=20640, columns=len(COLUMNS), header=COLUMNS), -200, 1e6)
    longitude, latitude, age, rooms, bedrooms, population, households, income, value = table.T
    features = (
        income,
        age,
        rooms / households,
        bedrooms / households,
        population,
        population / households,
        latitude,
        longitude,
    )
    raw = Raw(np.stack(features, axis=1), value[:, None] / 100_000)
    return assemble("california_housing", raw, settings, classes=None)
