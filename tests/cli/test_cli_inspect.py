"""`prunekit inspect --groups`: what is coupled, as a table and as JSON."""

import json
import re

import pytest
import torch
from torch import nn

from prunekit.graph import GroupPlan, groups, parameters_per_unit, shrink

CODE = """
import torch
from torch import nn


class ALayerOfManyWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.a_projection_to_the_hidden_width = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(24)
        self.back = nn.Linear(24, 8)

    def forward(self, x):
        return x + self.back(torch.relu(self.norm(self.a_projection_to_the_hidden_width(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.the_layers_of_the_encoder = nn.ModuleList([ALayerOfManyWords() for _ in range(3)])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.the_layers_of_the_encoder:
            x = layer(x)
        return self.head(x.mean(1))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x)
        if x.sum() > 0:
            x = -x
        return self.second(x)
"""


pytestmark = pytest.mark.usefixtures("words_net")
INSPECT = "inspect words_net:Net --input-shape 6 --tokens 20 --groups"


@pytest.fixture
def words_net(tmp_path, monkeypatch):
    (tmp_path / "words_net.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_table_fits_80_columns(command):
    ended = command(INSPECT)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if "MLP width" in line or "neurons" in line]
    assert len(rows) == 3
    assert re.search(r"^the_layers_of_the_encoder\.1\.a_proj\w+ +\w[\w ]* +24 +5 +19$", rows[1])
    assert ended.out.count("_the_hidden_width *") == 3
    assert "the_layers_of_the_encoder.0.norm, the_layers_of_the_encoder.1.norm," in ended.out
    stream = "stays: the residual stream stays unless it is asked for (--residual) (words_net.py:25)"
    text = " ".join(ended.out.split())
    assert f"{stream} the_layers_of_the_encoder.0.back (8)" in text
    assert "stays: is the network's output (words_net.py:28) head (5)" in text


def test_the_json_is_the_plan(command):
    found = json.loads(command(f"{INSPECT} --json").out)
    each = {group.pop("name"): group.pop("parameters_per_unit") for group in found["groups"]}
    assert each["the_layers_of_the_encoder.0.a_projection_to_the_hidden_width"] == 8 + 1 + 2 + 8
    found = json.loads(command(f"{INSPECT} --residual --json").out)
    for group in found["groups"]:
        del group["parameters_per_unit"]
    stream = GroupPlan.from_dict(found).group("the_layers_of_the_encoder.0.back")
    assert (stream.kind, stream.units, stream.frozen) == ("residual stream", 8, None)


def test_what_is_ignored_is_said(command):
    ended = command(f"{INSPECT} --ignore '*.0'  --ignore '*.2'")
    assert ended.out.count("MLP width") == 1
    assert "stays: it is to be left as it is (--ignore)" in ended.out


def test_nothing_can_go(command):
    ended = command(f"{INSPECT} --ignore '*'")
    assert ended.code == 0
    assert "no group can lose units" in ended.out


def test_a_datasets_examples_are_taken(command):
    ended = command("inspect '{name: mlp, hidden: [8]}' --data iris --groups")
    assert re.search(r"fc1 +neurons +8 +3 +8\n", ended.out)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("inspect words_net:Net --input-shape 6 --groups", r"cannot take examples .*; .* add --tokens"),
        ("inspect words_net:Net --input-shape 6 --tokens 50 --groups", "cannot take examples .* IndexError"),
        ("inspect words_net:Net --tokens 20 --groups", "the shape of an example is not known"),
        (f"{INSPECT} --ignore layers", "ignore: 'layers' matches no module and no parameter"),
        ("inspect words_net:Net --input-shape 6 --tokens 20 --ignore head", "add --groups"),
        ("inspect words_net:Net --input-shape 6 --tokens 0", "--tokens"),
    ],
)
def test_bad_input_is_told_in_one_line(command, line, message):
    assert re.search(message, command(line).complaint())


def small():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )


def test_parameters_of_a_unit_are_those_that_surgery_takes_with_it():
    inputs = torch.randn(2, 1, 8, 8)
    plan = groups(small(), inputs)
    each = parameters_per_unit(small(), plan)
    assert len(plan.prunable) == 2
    for group in plan.prunable:
        lost = []
        for unit in range(group.units):
            result = shrink(small(), inputs, {group.name: torch.arange(group.units) != unit})
            lost.append(result.parameters_before - result.parameters_after)
        assert each[group.name] == sum(lost) / group.units
