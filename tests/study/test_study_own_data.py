"""Studies on a dataset of the user's own: what the function is given, and whose results are used again."""

import json
import pickle

import pytest
import torch
from own_tables import table
from safetensors.torch import load_file

from prunekit.data import DataSettings, load
from prunekit.errors import DataError, InputError
from prunekit.study import Study, run_study
from tiny_study import one_shot, settings, stages, tables

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def number(tmp_path, monkeypatch):
    file = tmp_path / "number.txt"
    file.write_text("1")
    monkeypatch.setenv("OWN_TABLE", str(file))
    return file


def own(function, **more):
    return DataSettings.parse({"name": f"own_tables:{function}"} | more, allow=["own_tables"])


def study(**changes):
    values = {"methods": {"random": one_shot("random", 0.5)}, "dataset": "own_tables:table"} | changes
    return Study.parse(settings(**values), allow=["own_tables"])


def test_rows_are_of_the_examples_that_the_function_gives(number, tmp_path):
    run_study(study(), tmp_path / "out", workers=1)
    rows, _ = tables(tmp_path / "out")
    assert {row["dataset"] for row in rows} == {"own_tables:table"}
    test = table().test
    (network,) = (tmp_path / "out").glob("networks/*/seed-0")
    values = load_file(network / "trained.safetensors")
    hidden = torch.relu(test.inputs @ values["fc1.weight"].T + values["fc1.bias"])
    right = (hidden @ values["fc2.weight"].T + values["fc2.bias"]).argmax(1) == test.targets
    assert float(rows[0]["test_accuracy"]) == pytest.approx(float(right.float().mean()))


@pytest.mark.parametrize("splits", ["one", "per_seed"])
def test_results_of_other_examples_are_not_used_again(number, tmp_path, splits):
    out, compared = tmp_path / "out", study(splits=splits, seeds=2)
    run_study(compared, out, workers=1)
    before, first = stages(out), tables(out)
    run_study(compared, out, workers=1)
    assert stages(out) == before
    number.write_text("2")
    run_study(compared, out, workers=1)
    after = stages(out)
    assert len(after) == 2 * len(before)
    assert after.items() >= before.items()
    assert tables(out) != first
    content = json.loads((out / "study.json").read_text())["dataset"]["content"]
    assert content == table().digest()


def test_a_worker_gets_the_module_with_the_study(number):
    again = pickle.loads(pickle.dumps(study()))
    assert again.allow == ("own_tables",)
    assert load(again.dataset).digest() == table().digest()


def test_each_replicate_has_a_split_of_its_own(number):
    of_seeds = [load(study(splits="per_seed").dataset_of(seed)) for seed in (0, 3)]
    assert [data.digest() for data in of_seeds] == [table(0).digest(), table(3).digest()]
    with pytest.raises(
        InputError, match="splits: per_seed: own_tables:asks_for_nothing does not ask for 'seed'"
    ):
        study(dataset="own_tables:asks_for_nothing", splits="per_seed")


def test_the_function_is_given_what_it_asks_for():
    data = load(own("folder", test=0.5, validation=0.25, limit=6), "somewhere")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 5, 20]


def test_other_examples_than_those_asked_for_are_refused(number):
    assert load(own("table", content=table().digest())).name == "own_tables:table"
    with pytest.raises(DataError, match=f"have the digest {table().digest()}, not 0123"):
        load(own("table", content="0123"))


@pytest.mark.parametrize(
    ("function", "more", "message"),
    [
        (
            "says_nothing",
            {},
            r"nothing says that it gives a dataset.*def says_nothing.*prunekit.data.Dataset",
        ),
        ("needs", {}, "needs the argument 'path'; it may ask for validation, test, seed, data_dir"),
        ("asks_for_nothing", {"seed": 1}, "seed: own_tables:asks_for_nothing does not ask for it"),
        ("table", {"more_test": 5}, "more_test: own_tables:table does not ask for it"),
        ("has_an_argument_that_is_never_given", {"more_test": 5}, "more_test: .* does not ask for it"),
        ("tabel", {}, "the module 'own_tables' has no 'tabel'"),
        ("torch", {}, "leads into the module torch"),
    ],
)
def test_what_cannot_be_called_is_refused_before(function, more, message):
    with pytest.raises(InputError, match=message):
        own(function, **more)


def test_a_module_that_is_not_allowed_is_not_imported():
    with pytest.raises(InputError, match=r"^dataset: .*--allow subprocess"):
        DataSettings.parse({"name": "subprocess:getoutput"})
    with pytest.raises(InputError, match="nothing says that it gives a dataset"):
        DataSettings.parse({"name": "subprocess:getoutput"}, allow=["subprocess"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "own_tables:fails failed with KeyError: 'length'"),
        ("another", r"gave \[1, 2\], which is no"),
    ],
)
def test_what_the_function_does_wrong_is_named(function, message):
    with pytest.raises(DataError, match=message):
        load(own(function))
