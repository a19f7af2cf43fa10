import gzip

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from synthetic_data_files import csv_text

from prunekit.data import DataSettings, load
from prunekit.data.store import table_inside_sklearn
from prunekit.data.tabular import generate, waves
from prunekit.errors import DataError


def everything(dataset):
    parts = (dataset.train, dataset.validation, dataset.test)
    return torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])


def synthetic(rows, features, low, high, classes, seed=0):
    random = np.random.default_rng(seed)
    values = np.round(random.uniform(low, high, (rows, features)), 3)
    return csv_text(values, [classes[number % len(classes)] for number in range(rows)])


def breast_cancer_text(with_code):
    values = np.random.default_rng(0).integers(1, 11, (699, 9))
    lines = csv_text(values, ["2", "4", "2"] * 233).splitlines()
    for number in range(20, 660, 40):
        cells = lines[number].split(",")
        cells[5] = "?"
        lines[number] = ",".join(cells)
    code = "1000025," if with_code else ""
    return "".join(f"{code}{line}\n" for line in lines)


TABLES = {
    "iris": (
        "iris.csv",
        synthetic(150, 4, 0.1, 8, ["Iris-setosa", "Iris-versicolor", "Iris-virginica"]),
        150,
    ),
    "breast_cancer": ("breast-cancer-wisconsin.csv", breast_cancer_text(False), 683),
    "diabetes": ("pima-indians-diabetes.csv", synthetic(768, 8, 0, 200, ["0", "1", "0"]), 768),
    "ionosphere": ("ionosphere.csv", synthetic(351, 34, -1, 1, ["g", "b", "g"]), 351),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_from_a_folder(tmp_path, name):
    file, text, rows = TABLES[name]
    (tmp_path / "uci").mkdir()
    (tmp_path / "uci" / file).write_text(text)
    dataset = load(name, tmp_path, download=False)
    inputs, targets = everything(dataset)
    assert (dataset.name, dataset.task, len(inputs)) == (name, "classification", rows)
    for part in (dataset.train, dataset.validation, dataset.test):
        share = part.targets.bincount(minlength=dataset.outputs) / len(part)
        overall = targets.bincount() / rows
        assert ((share - overall).abs() * len(part)).max() < 2


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "columns, expected|rows found"),
        (
            lambda text: "\n".join(line.rsplit(",", 1)[0] for line in text.splitlines()),
            "line 1 has .* columns",
        ),
        (lambda text: text + text.splitlines()[-1] + "\n", "rows found"),
        (lambda text: text[: text.rstrip().rindex(",")] + ",other\n", "class 'other' is none of"),
        (lambda text: text.replace(",", ",x", 1), "not a number"),
        (lambda text: "-5000," + text.split(",", 1)[1], "row 1, feature 1 is -5000, expected"),
        (lambda text: "<!DOCTYPE html>" + text, "web page"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, name, change, message):
    file, text, _ = TABLES[name]
    path = tmp_path / file
    path.write_text(change(text))
    with pytest.raises(DataError, match=message) as caught:
        load(name, tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_the_sample_code_of_ucis_own_file_is_dropped(tmp_path):
    for folder, file, code in (
        ("a", "breast-cancer-wisconsin.csv", False),
        ("b", "breast-cancer-wisconsin.data", True),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(breast_cancer_text(code))
    first, second = (load("breast_cancer", tmp_path / folder, download=False) for folder in "ab")
    assert first.input_shape == (9,)
    assert torch.equal(first.train.inputs, second.train.inputs)


def test_without_a_file_iris_is_scikit_learns():
    dataset = load("iris", download=False)
    inputs, targets = everything(dataset)
    assert (dataset.outputs, dataset.input_shape, len(inputs)) == (3, (4,), 150)
    assert targets.bincount().tolist() == [50, 50, 50]
    assert dataset.test.targets.bincount().tolist() == [10, 10, 10]
    # Scaling keeps the order of each feature, by which the flowers are known again.
    original = np.sort(load_iris().data, axis=0)
    scaled = np.sort(inputs.numpy(), axis=0)
    for feature in range(4):
        assert np.corrcoef(original[:, feature], scaled[:, feature])[0, 1] > 0.999999


@pytest.mark.parametrize(
    ("name", "header", "load_theirs"), [("digits.csv.gz", 0, load_digits), ("iris.csv", 1, load_iris)]
)
def test_tables_are_those_that_scikit_learn_loads(name, header, load_theirs):
    rows = table_inside_sklearn(name, "This test", header)
    inputs, targets = load_theirs(return_X_y=True)
    assert np.array_equal(rows[:, :-1], inputs)
    assert np.array_equal(rows[:, -1], targets)


def test_digits_are_images_and_need_no_file():
    dataset = load("digits", download=False)
    inputs, targets = everything(dataset)
    assert (dataset.outputs, dataset.input_shape, len(inputs)) == (10, (1, 8, 8), 1797)
    assert targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert abs(dataset.train.inputs.mean()) < 1e-5


COLUMNS = (
    "longitude, latitude, housingMedianAge, totalRooms, totalBedrooms, population, households, medianIncome, "
    "medianHouseValue"
)
HOUSE = "-122.23,37.88,41,880,129,322,126,8.3252,452600"


def housing_text(header):
    lines = [
        f"-120.5,36.{number % 100:02d},30,{1000 + number},200,500,100,4.0,{100000 + number}"
        for number in range(20639)
    ]
    return "\n".join([*([COLUMNS] if header else []), HOUSE, *lines]) + "\n"


@pytest.mark.parametrize(
    ("file", "header"),
    [
        ("uci/california_housing.csv.gz", True),
        ("california_housing/CaliforniaHousing/cal_housing.data", False),
    ],
)
def test_housing_is_read_with_and_without_header(tmp_path, file, header):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    text = housing_text(header).encode()
    path.write_bytes(gzip.compress(text) if file.endswith(".gz") else text)
    dataset = load("california_housing", tmp_path, download=False)
    inputs, targets = everything(dataset)
    assert (dataset.task, dataset.outputs, dataset.input_shape) == ("regression", 1, (8,))
    assert (inputs.shape, targets.shape, targets.dtype) == ((20640, 8), (20640, 1), torch.float32)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (14861, 1651, 4128)
    assert float(targets.max()) == pytest.approx(4.526)


def test_housing_without_a_column_is_refused(tmp_path):
    path = tmp_path / "california_housing.csv"
    path.write_text(housing_text(True).replace("households", "families"))
    with pytest.raises(DataError, match=r"california_housing\.csv: the columns are .*families"):
        load("california_housing", tmp_path, download=False)
    path.write_text("\n".join(line.rsplit(",", 1)[0] for line in housing_text(True).splitlines()))
    with pytest.raises(DataError, match="line 1 has 8 columns, expected 9"):
        load("california_housing", tmp_path, download=False)


REAL = {
    "breast_cancer": ((9,), [444, 239]),
    "diabetes": ((8,), [500, 268]),
    "ionosphere": ((34,), [126, 225]),
    "iris": ((4,), [50, 50, 50]),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_tables_have_their_published_sizes(real_data, name):
    shape, counts = REAL[name]
    dataset = load(name, real_data, download=False)
    assert dataset.input_shape == shape
    assert everything(dataset)[1].bincount().tolist() == counts


def test_the_real_houses_are_scikit_learns(real_data):
    dataset = load("california_housing", real_data, download=False)
    inputs, targets = everything(dataset)
    # The figures of scikit-learn's user guide: 20,640 districts, targets 0.15 to 5, mean 2.0686.
    assert len(inputs) == 20640
    assert (float(targets.min()), float(targets.max())) == pytest.approx((0.14999, 5.00001))
    assert float(targets.double().mean()) == pytest.approx(2.068558, abs=1e-6)
    # The first district, undone: scaling is affine, so two known districts fix it for each feature.
    table = np.loadtxt(real_data / "uci" / "california_housing.csv.gz", delimiter=",", skiprows=1)
    rooms = np.sort(table[:, 3] / table[:, 6])
    assert np.corrcoef(rooms, np.sort(inputs[:, 2]))[0, 1] > 0.999999
    occupancy = np.sort(table[:, 5] / table[:, 6])
    assert np.corrcoef(occupancy, np.sort(inputs[:, 5]))[0, 1] > 0.999999


def class_means():
    """E x = (a + b) / 2 of each class, and a - b.

    By the book h1(i) = max(6 - |i - 11|, 0), h2(i) = h1(i - 4) and h3(i) = h1(i + 4).
    """
    h1, h2, h3 = (np.array([max(6 - abs(i - peak), 0) for i in range(1, 22)]) for peak in (11, 15, 7))
    return np.stack([(h2 + h3) / 2, (h1 + h3) / 2, (h1 + h2) / 2]), np.stack([h3 - h2, h3 - h1, h1 - h2])


def test_the_waves_are_triangles():
    assert waves().shape == (3, 21)
    assert waves().max(1).tolist() == [6, 6, 6]
    assert (waves().argmax(1) + 1).tolist() == [7, 11, 15]
    assert waves()[0, :3].tolist() == [0, 1, 2]


def test_frequencies_means_and_variances_follow_the_definition():
    count = 60_000
    inputs, targets = generate(count, seed=0)
    means, differences = class_means()
    # All bounds are five standard errors; the draws are fixed by the seed, so that this holds or never does.
    np.testing.assert_allclose(np.bincount(targets) / count, 1 / 3, atol=5 * np.sqrt(2 / 9 / count))
    for number in range(3):
        chosen = inputs[targets == number]
        variance = 1 + differences[number] ** 2 / 12  # of the noise, and of a uniform mixture
        error = np.sqrt(variance / len(chosen))
        assert (np.abs(chosen.mean(0) - means[number]) < 5 * error).all()
        np.testing.assert_allclose(chosen.var(0), variance, rtol=0.06)
        # One mixture for the whole example: features covary as the difference of its waves says.
        left, right = 8, 12
        covariance = np.cov(chosen[:, left], chosen[:, right])[0, 1]
        assert covariance == pytest.approx(
            differences[number][left] * differences[number][right] / 12, abs=0.06
        )


def test_the_set_has_the_usual_size_and_parts():
    dataset = load("waveform", download=False)
    assert (dataset.outputs, dataset.input_shape) == (3, (21,))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (3600, 400, 1000)
    rows = [
        row.numpy().tobytes()
        for part in (dataset.train, dataset.validation, dataset.test)
        for row in part.inputs
    ]
    assert len(set(rows)) == 5000


def test_the_seed_draws_the_examples():
    first, same, other = (load(DataSettings(name="waveform", seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.train.inputs, same.train.inputs)
    assert not torch.equal(first.train.inputs[:100], other.train.inputs[:100])


def test_generated_statistics_are_those_of_ucis_sample(real_data):
    path = real_data / "uci" / "waveform.data.gz"
    if not path.exists():
        pytest.skip("the data folder has no waveform.data.gz")
    rows = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        try:
            rows.append([float(cell) for cell in line.split(",")])
        except ValueError:  # one of the 5,000 lines of the copy at hand has a stray tab in a number
            continue
    sample = np.array(rows)
    assert len(sample) >= 4990
    inputs, targets = generate(5000, seed=0)
    for number in range(3):
        real, drawn = sample[sample[:, -1] == number, :-1], inputs[targets == number]
        error = np.sqrt(real.var(0) / len(real) + drawn.var(0) / len(drawn))
        assert (np.abs(real.mean(0) - drawn.mean(0)) < 5 * error).all()
        np.testing.assert_allclose(real.std(0), drawn.std(0), rtol=0.1)
