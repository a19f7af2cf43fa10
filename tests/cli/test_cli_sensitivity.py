"""`prunekit sensitivity`: the table, the files, and the same numbers as in Python."""

import csv
import json

import pytest

from prunekit import Recipe, Session
from prunekit.data import load
from prunekit.models import create

MODEL = "sensitivity '{name: mlp, hidden: [12]}' --data digits --sparsities 0.5,0.9"


def test_its_numbers_are_those_of_a_session(command, tmp_path):
    ended = command(f"{MODEL} --csv curves.csv --plot curves.png --json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    digits = load("digits")
    model = create({"name": "mlp", "hidden": [12]}, digits.input_shape, digits.outputs, seed=0)
    recipe = Recipe(schedule={"name": "one_shot", "sparsity": 0.5})
    expected = Session(model, recipe, data=digits.train).sensitivity((0.5, 0.9))
    assert found["dense"] == pytest.approx(expected.dense)
    assert [row["value"] for row in found["rows"]] == pytest.approx(
        [row["value"] for row in expected.to_rows()]
    )
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found["rows"]) == 2 * 3
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_its_table_has_a_line_for_each_layer(command):
    ended = command(f"{MODEL} --granularity unit")
    assert ended.code == 0, ended.err
    first, *_ = ended.out.splitlines()
    assert first.split() == ["layer", "size", "50%", "90%"]
    assert "fc1" in ended.out
    assert "loss of the dense network: 2." in ended.out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--sparsities half", "--sparsities 'half': write numbers joined by commas, as 0.5,0.9"),
        ("--sparsities 0.9,0.5", "they must increase, above 0 and below 1"),
        ("--plot curves.xyz", "the name must end in .pdf, .png, .svg"),
        ("--score nothing", "there is no score 'nothing'"),
    ],
)
def test_bad_input_is_one_line(command, options, complaint):
    assert complaint in command(f"{MODEL} {options}").complaint()
