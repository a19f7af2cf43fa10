import pytest

from prunekit.data import LOADERS, Dataset, DataSettings, load, names
from prunekit.errors import DataError, InputError


def test_names_are_in_alphabetical_order():
    assert names() == [
        "breast_cancer",
        "california_housing",
        "cifar10",
        "diabetes",
        "digits",
        "fashion_mnist",
        "ionosphere",
        "iris",
        "mnist",
        "tiny_shakespeare",
        "waveform",
    ]


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        LOADERS["mine"] = LOADERS["iris"]


def test_an_unknown_name_lists_the_names():
    with pytest.raises(InputError, match=r"'minst'; did you mean 'mnist'. names are: breast_cancer, .*form"):
        load("minst")


def test_a_mapping_is_read_as_settings():
    dataset = load({"name": "iris", "test": 0.5})
    assert isinstance(dataset, Dataset)
    assert len(dataset.test) == 75


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation": 0}, "validation"),
        ({"validation": 1.0}, "validation"),
        ({"test": 40}, "test"),
        ({"seed": -1}, "seed"),
        ({"limit": 0}, "limit"),
        ({"size": 3}, "unknown key 'size'"),
    ],
)
def test_settings_refuse(values, message):
    with pytest.raises(InputError, match=message):
        DataSettings(name="iris", **values)


def test_settings_survive_their_dictionary():
    settings = DataSettings(name="iris", seed=4, limit=10)
    assert DataSettings.parse(settings.to_dict()) == settings


@pytest.mark.parametrize("name", sorted(set(names()) - {"digits", "iris", "waveform"}))
def test_every_downloaded_set_says_where_it_was_looked_for(tmp_path, cache, name):
    with pytest.raises(DataError) as caught:
        load(name, tmp_path / "data", download=False)
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert str(tmp_path / "data") in text
    assert str(cache) in text


def test_the_environment_names_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_DATA", str(tmp_path))
    (tmp_path / "iris.csv").write_text("<html>")
    with pytest.raises(DataError, match="web page"):
        load("iris")


def test_a_part_that_would_be_empty_is_refused():
    with pytest.raises(InputError, match="holds out none"):
        load(DataSettings(name="iris", validation=0.001))
