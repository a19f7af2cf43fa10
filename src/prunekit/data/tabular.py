"""Datasets of tables: read strictly, every row, cell and value as the source documents it, or generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit.data.dataset import Dataset, DataSettings, Raw, assemble
from prunekit.data.store import SOURCES, Store, damaged, read_bytes, table_inside_sklearn
from prunekit.seeds import derive

Rows = list[list[str]]


def read_rows(path: Path, *, rows: int, columns: int, header: Sequence[str] = ()) -> Rows:
    """The cells of a table, stripped of blanks.

    Args:
        path: a text file, gzipped or not, one row a line; empty lines are skipped.
        rows: how many rows there must be, the header not counted.
        columns: how many cells each row must have.
        header: the names of the columns where the file may begin with them.

    Raises:
        DataError: naming the file, what was found and what was expected, and the line where there is one.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(path, "this is not a text file") from error
    table = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != columns:
            raise damaged(path, f"line {number} has {len(cells)} columns, expected {columns}")
        table.append(cells)
    if header and table and not _is_number(table[0][0]):
        if table[0] != list(header):
            raise damaged(path, f"the columns are {', '.join(table[0])}, expected {', '.join(header)}")
        del table[0]
    if len(table) != rows:
        raise damaged(path, f"{len(table)} rows found, {rows} expected")
    return table


def numbers(path: Path, cells: Sequence[Sequence[str]], low: float, high: float) -> NDArray[np.float64]:
    """The cells as numbers, (rows, columns). Raises `DataError` for what is no number in [low, high]."""
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError as error:
        raise damaged(path, f"a value is not a number ({error})") from error
    outside = ~((values >= low) & (values <= high))  # negated so that NaN counts as outside
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise damaged(
            path,
            f"row {row + 1}, feature {column + 1} is {values[row, column]:g}, expected {low:g} to {high:g}",
        )
    return values


def labels(path: Path, cells: Sequence[str], classes: Mapping[str, int]) -> NDArray[np.int64]:
    """The number of the class that each cell names, (rows,). Raises `DataError` for an unknown name."""
    unknown = sorted(set(cells) - set(classes))
    if unknown:
        raise damaged(path, f"the class {unknown[0]!r} is none of {', '.join(classes)}")
    return np.array([classes[cell] for cell in cells], dtype=np.int64)


def classified(path: Path, rows: Rows, low: float, high: float, classes: Mapping[str, int]) -> Raw:
    """Rows of features in [low, high] and, in the last cell, the class. Raises `DataError` as both do."""
    return Raw(
        numbers(path, [row[:-1] for row in rows], low, high), labels(path, [row[-1] for row in rows], classes)
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


TUMOURS = {"2": 0, "4": 1}


def load_breast_cancer(settings: DataSettings, store: Store) -> Dataset:
    """683 tumours, benign (0) or malignant (1): 9 cytological grades from 1 to 10.

    Source: Wolberg & Mangasarian 1990, Breast cancer Wisconsin, the original set of 1992, UCI.

    The 16 of the 699 rows that lack a grade ("?") are left out. UCI's file (.data) begins each row with a
    sample code, which is dropped; the file .csv is the same without it.

    Raises:
        DataError: if the file cannot be had, or is not this table.
    """
    (path,) = store.fetch(SOURCES["breast_cancer"])
    with_code = path.suffix == ".data"
    rows = read_rows(path, rows=699, columns=11 if with_code else 10)
    complete = [row[with_code:] for row in rows if "?" not in row]
    raw = classified(path, complete, 1, 10, TUMOURS)
    return assemble(raw, settings, classes=2)


HOUSING_COLUMNS = (
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


def load_california_housing(settings: DataSettings, store: Store) -> Dataset:
    """20,640 districts of the census of 1990: predict the median house value, in units of 100,000 dollars.

    Source: Pace & Barry 1997, StatLib; downloaded from the archive that scikit-learn uses.

    The 8 features are those of scikit-learn's `fetch_california_housing`, in its order: median income (in
    10,000 dollars), median age of the houses, rooms, bedrooms for each household, population, people for
    each household, latitude, longitude. The targets (N, 1) are not standardised.

    Raises:
        DataError: if the file cannot be had, or is not this table.
    """
    (path,) = store.fetch(SOURCES["california_housing"])
    table = numbers(
        path,
        read_rows(path, rows=20640, columns=len(HOUSING_COLUMNS), header=HOUSING_COLUMNS),
        -200,
        1e6,
    )
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
    return assemble(raw, settings, classes=None)


def load_diabetes(settings: DataSettings, store: Store) -> Dataset:
    """768 women, without (0) or with (1) diabetes within five years: 8 clinical measurements.

    Source: Smith et al. 1988, Pima Indians diabetes, once at UCI.

    A zero in glucose, blood pressure, skin thickness, insulin or body mass stands for a missing value; it is
    kept, as it is in the published results on this set.

    Raises:
        DataError: if the file cannot be had, or is not this table.
    """
    (path,) = store.fetch(SOURCES["diabetes"])
    rows = read_rows(path, rows=768, columns=9)
    raw = classified(path, rows, 0, 1000, {"0": 0, "1": 1})
    return assemble(raw, settings, classes=2)


def load_ionosphere(settings: DataSettings, store: Store) -> Dataset:
    """351 radar returns, bad (0) or good (1): 17 complex values in [-1, 1] as 34 features.

    Source: Sigillito et al. 1989, Johns Hopkins University ionosphere database, UCI.

    The second feature is zero throughout, in the source too.

    Raises:
        DataError: if the file cannot be had, or is not this table.
    """
    (path,) = store.fetch(SOURCES["ionosphere"])
    rows = read_rows(path, rows=351, columns=35)
    raw = classified(path, rows, -1, 1, {"b": 0, "g": 1})
    return assemble(raw, settings, classes=2)


SPECIES = {"Iris-setosa": 0, "Iris-versicolor": 1, "Iris-virginica": 2}


def load_iris(settings: DataSettings, store: Store) -> Dataset:
    """150 flowers of 3 species: length and width of sepal and petal, in cm.

    Source: Fisher 1936, UCI.

    Read from UCI's file where there is one, else from the copy inside scikit-learn. The two differ in two
    flowers (the 35th and the 38th), where scikit-learn follows Fisher's article and UCI does not.

    Raises:
        DataError: if a file is there but is not UCI's table.
    """
    found = store.find(SOURCES["iris"])
    if found is None:
        copy = table_inside_sklearn("iris.csv", "The data set iris", header=1)
        raw = Raw(copy[:, :4], copy[:, 4].astype(np.int64))
    else:
        (path,) = found
        rows = read_rows(path, rows=150, columns=5)
        raw = classified(path, rows, 0, 10, SPECIES)
    return assemble(raw, settings, classes=3)


EXAMPLES = 5000
FEATURES = 21
PEAKS = (7, 11, 15)
# The two waves that each class mixes, in the order of the classes of UCI's sample: the outer two, the
# left two, the right two.
MIXED = ((0, 2), (0, 1), (1, 2))


def load_waveform(settings: DataSettings, store: Store) -> Dataset:
    """5,000 examples of 3 equally likely classes: a random mixture of two waves, at 21 points, with noise.

    Source: Breiman, Friedman, Olshen & Stone (1984), Classification and Regression Trees, pages 49 to 55.

    The seed of the settings draws the examples as well as their split. Nothing is read or downloaded.
    """
    return assemble(generate(EXAMPLES, settings.seed), settings, classes=3)


def generate(count: int, seed: int) -> Raw:
    """Draw examples: x(i) = u a(i) + (1 - u) b(i) + e(i) at i = 1 to 21.

    Here a and b are the waves of the example's class, u is uniform on [0, 1], one for each example, and the
    e(i) are standard normal.

    Args:
        count: how many.
        seed: of the classes, the mixtures and the noise.

    Returns:
        Inputs (count, 21) and targets (count,) in 0, 1, 2.
    """
    random = np.random.default_rng(derive(seed, "waveform"))
    classes = random.integers(len(MIXED), size=count)
    share = random.random((count, 1))
    noise = random.standard_normal((count, FEATURES))
    first, second = waves()[np.array(MIXED)[classes].T]
    return Raw(share * first + (1 - share) * second + noise, classes)


def waves() -> NDArray[np.float64]:
    """The three waves, (3, 21): triangles of height 6 with their peaks at 7, 11 and 15."""
    distance = np.abs(np.arange(1, FEATURES + 1) - np.array(PEAKS)[:, None])
    return np.maximum(6.0 - distance, 0)
