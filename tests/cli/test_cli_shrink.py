"""`prunekit shrink`: what it saves, what it prints, and what it refuses."""

import json
import os
import re

import pytest
import torch

from prunekit import load_pretrained
from prunekit.graph import GraphModel

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden: int = 8, written: bool = False):
        super().__init__()
        self.into, self.up, self.down = nn.Linear(4, 6), nn.Linear(6, hidden), nn.Linear(hidden, 6)
        self.out = nn.Linear(6, 3)
        self.written = written

    def forward(self, x):
        x = self.into(x)
        x = x + self.down(torch.relu(self.up(x)).view(len(x), 8 if self.written else -1))
        return self.out(x)


def written() -> Net:
    return Net(written=True)


class Stream(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.block, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.into(x)
        return self.out(x + self.block(torch.relu(x)))


class Branching(Net):
    def forward(self, x):
        x = self.into(x)
        return self.out(-x if x.sum() > 0 else x)


class Off(Net):
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.up.weight[2], self.up.bias[2] = 0, 0
            self.down.weight[:, 5] = 0
"""
NET = "shrink shrink_net:Net --input-shape 4 --out small"
PRUNE = "prune '{name: mlp, hidden: [8, 6]}' --data iris --train 2 --out pruned"

pytestmark = pytest.mark.usefixtures("shrink_net")


@pytest.fixture
def shrink_net(tmp_path, monkeypatch):
    (tmp_path / "shrink_net.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))


def read(ended):
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_half_of_a_network_of_ones_own(command, tmp_path):
    found = read(command(f"{NET} --sparsity 0.5 --json"))
    assert found["before"]["parameters"] == 30 + 56 + 54 + 21
    assert found["after"]["parameters"] == 30 + 28 + 30 + 21
    assert found["before"]["macs"] == 24 + 48 + 48 + 18
    assert found["after"]["macs"] == 24 + 24 + 24 + 18
    assert found["after"]["bytes"] == sum(path.stat().st_size for path in (tmp_path / "small").iterdir())
    assert found["form"] == "modules"
    assert found["deviation"]["relative"] <= found["deviation"]["tolerance"]
    assert found["groups"] == [{"name": "up", "before": 8, "after": 4}]

    from shrink_net import Net

    model = load_pretrained(tmp_path / "small", Net())
    assert (model.up.out_features, model.down.in_features) == (4, 4)
    shown = command("inspect shrink_net:Net --weights small --input-shape 4 --json")
    assert read(shown)["parameters"] == found["after"]["parameters"]


def test_what_is_shown_fits_80_columns(command):
    ended = command(f"{NET} --sparsity 0.5")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.search(r"^parameters +161 +109 +67.7%$", ended.out, re.MULTILINE)
    assert re.search(r"^latency +\S+ .s +\S+ .s +\S+%$", ended.out, re.MULTILINE)
    assert "units: 4 taken out of 1 groups" in ended.out
    assert "form: modules of its own classes" in ended.out
    assert lines[-2:] == ["small", 'Load it with prunekit.load_pretrained("small", model).']


def test_residual_streams_kinds_and_multiples(command):
    found = read(command(f"{NET} --sparsity 0.5 --residual --round-to 4 --json"))
    assert {g["name"]: g["after"] for g in found["groups"]} == {"down": 4, "up": 4} or {
        g["name"]: g["after"] for g in found["groups"]
    } == {"into": 4, "up": 4}
    found = read(command(f"{NET.replace('small', 'b')} --sparsity 0.4 --residual --kinds 'neurons' --json"))
    assert [group["name"] for group in found["groups"]] == ["up"]


def test_a_graph_needs_no_class(command, tmp_path):
    found = read(command("shrink shrink_net:written --input-shape 4 --sparsity 0.5 --batch 3 --out g --json"))
    assert found["form"] == "graph"
    assert "shape '[3, 8]'" in found["reason"]
    assert found["batch"] == 3
    assert isinstance(load_pretrained(tmp_path / "g"), GraphModel)
    shown = read(command("inspect g --json"))
    assert shown["parameters"] == found["after"]["parameters"]
    assert shown["macs"] == found["after"]["macs"]
    assert shown["latency"]["batch"] == 1
    assert load_pretrained(tmp_path / "g")(torch.zeros(5, 4)).shape == (5, 3)
    again = command("shrink g --sparsity 0.5 --out h")
    assert again.code == 0, again.err
    assert "form: the exported graph" in again.out or "form: modules" in again.out
    assert load_pretrained(tmp_path / "h")(torch.zeros(5, 4)).shape == (5, 3)


@pytest.mark.parametrize("method", ["filter_norm --set epochs=1", "random_units"])
def test_a_pruned_folder_with_units(command, tmp_path, method):
    assert command(f"{PRUNE} --method {method} --set sparsity=0.5").code == 0
    dense = load_pretrained(tmp_path / "pruned").eval()
    found = read(command("shrink pruned --data iris --out small --json"))
    small = load_pretrained(tmp_path / "small").eval()
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(small(inputs), dense(inputs))
    assert found["before"]["test_accuracy"] == found["after"]["test_accuracy"]
    assert sum(group["before"] - group["after"] for group in found["groups"]) == 7
    assert found["after"]["bytes"] < found["before"]["bytes"]
    assert read(command("inspect small --json"))["parameters"] == found["after"]["parameters"]
    assert "no unit of this network is dead" in command("shrink small --out again").complaint()


@pytest.mark.parametrize(
    ("line", "removed", "next_line"),
    [
        (
            f"{PRUNE} --method random_units --set sparsity=0.5",
            "50.0% of 14 units removed",
            "prunekit shrink pruned --out pruned-shrunk",
        ),
        (
            "prune shrink_net:Net --data iris --recipe units.yaml --out 'of units'",
            "50.0% of 8 units removed",
            "prunekit shrink shrink_net:Net --weights 'of units' --data iris --out 'of units-shrunk'",
        ),
        (
            "prune '{name: resnet, width: 4, depth: 8}' --data digits --recipe shapes.yaml --out pruned",
            "weights removed",
            "prunekit shrink pruned --out pruned-shrunk",
        ),
    ],
)
def test_prune_names_units_and_the_command_that_takes_them_out(command, tmp_path, line, removed, next_line):
    (tmp_path / "units.yaml").write_text("{granularity: unit, schedule: {name: one_shot, sparsity: 0.5}}")
    (tmp_path / "shapes.yaml").write_text(
        "{granularity: filter_shape, allocation: per_layer, schedule: {name: one_shot, sparsity: 0.5}}"
    )
    pruned = command(line)
    assert pruned.code == 0, pruned.err
    assert removed in pruned.out
    assert "Zeros" not in pruned.out
    assert next_line in pruned.out.splitlines()
    shrunk = read(command(f"{next_line.removeprefix('prunekit ')} --json"))
    before, after = (shrunk[when]["parameters"] for when in ("before", "after"))
    assert after < before
    if "units" in removed:
        assert f"and with them {before - after:,} of {before:,} parameters" in pruned.out


def test_dead_units_of_single_weights(command, tmp_path):
    assert command(f"{PRUNE} --method magnitude --set sparsity=0.9").code == 0
    dense = load_pretrained(tmp_path / "pruned").eval()
    found = read(command("shrink pruned --out small --json"))
    assert found["after"]["parameters"] < found["before"]["parameters"]
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(load_pretrained(tmp_path / "small").eval()(inputs), dense(inputs))


def test_a_pruned_folder_in_coupled_groups(command, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "{granularity: unit, schedule: {name: one_shot, sparsity: 0.5}, retrain: none}"
    )
    ended = command("prune shrink_net:Net --data iris --recipe r.yaml --out pruned")
    assert ended.code == 0, ended.err
    line = "shrink shrink_net:Net --weights pruned --data iris --out small --json"
    found = read(command(line))
    assert found["groups"] == [{"name": "up", "before": 8, "after": 4}]
    assert found["before"]["test_loss"] == pytest.approx(found["after"]["test_loss"], rel=1e-5)


def test_a_pruned_folder_without_blocks(command, tmp_path):
    (tmp_path / "r.yaml").write_text("{granularity: block, schedule: {name: one_shot, sparsity: 0.5}}")
    settings = "'{name: resnet, width: 4, depth: 20}' --data digits"
    assert command(f"prune {settings} --recipe r.yaml --out pruned").code == 0
    masked = load_pretrained(tmp_path / "pruned").eval()
    found = read(command("shrink pruned --out small --json"))
    assert found["form"] == "modules"
    assert [(group["before"], group["after"]) for group in found["groups"]] == [(1, 0)] * 4
    # the four blocks of the smallest sum go: two convolutions of 9 w^2 at so many places each
    places = {4: 64, 8: 16, 16: 4}
    widths = [4 * 2 ** (int(group["name"][5]) - 1) for group in found["groups"]]
    saved = sum(2 * 9 * width**2 * places[width] for width in widths)
    assert found["before"]["macs"] - found["after"]["macs"] == saved
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(load_pretrained(tmp_path / "small").eval()(images), masked(images))


def test_units_that_are_off_in_a_network_that_is_no_chain(command):
    found = read(command("shrink shrink_net:Off --input-shape 4 --out small --json"))
    assert found["groups"] == [{"name": "up", "before": 8, "after": 6}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{NET} --sparsity 40", "--sparsity 40: write a share between 0 and 1, such as 0.4 for 40 %"),
        (f"{NET} --sparsity 0", "--sparsity 0: write a share between 0 and 1"),
        (f"{NET} --sparsity 1", "--sparsity 1: write a share"),
        (f"{NET} --sparsity half", "--sparsity"),
        (NET, "no unit of this network is dead"),
        (f"{NET} --residual", "say what --sparsity takes: add it"),
        (f"{NET} --form graph", "say what --sparsity takes: add it"),
        (f"{NET} --sparsity 0.5 --form onnx", "--form 'onnx': write modules or graph"),
        (f"{NET} --sparsity 0.5 --ignore nothing", "ignore: 'nothing' matches no module"),
        (f"{NET} --sparsity 0.5 --ignore '*'", r"nothing of this network can be pruned: .*\(--ignore\)"),
        (f"{NET} --sparsity 0.5 --kinds filter", "no groups are of the kind 'filter'; kinds are: heads, "),
        (
            f"{NET} --sparsity 0.5 --kinds heads",
            "no group of the kind heads can be pruned .* neurons can",
        ),
        (f"{NET} --sparsity 0.5 --round-to 0", "--round-to"),
        (f"{NET} --sparsity 0.5 --batch 0", "--batch"),
        ("shrink shrink_net:Net --input-shape 5 --sparsity 0.5 --out small", r"of the shape \(5,\)"),
        ("shrink shrink_net:Net --sparsity 0.5 --out small", "the shape of an example is not known"),
        ("shrink shrink_net:Net --sparsity 0.5 --data iris --batch 1000 --out small", "has 30 test examples"),
        ("shrink shrink_net:Net --sparsity 0.5 --input-shape 4", "Missing option '--out'"),
        ("shrink ./nothing --sparsity 0.5 --out small", "there is no folder ./nothing"),
        (f"{NET} --sparsity 0.5 --weights nothing.safetensors", "there is no file nothing"),
        (
            "shrink shrink_net:Stream --input-shape 4 --sparsity 0.5 --out small",
            r"nothing of this network can be pruned: .* asked for \(--residual\)",
        ),
        (
            "shrink shrink_net:Branching --input-shape 4 --sparsity 0.5 --out small",
            r"values of the inputs decide .*, at line \d+ of shrink_net.py: return self.out\(-x if",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(command, line, message, tmp_path):
    complaint = command(line).complaint()
    assert re.search(message, complaint), complaint
    assert not {"small"} & set(os.listdir(tmp_path))  # and nothing is written


def test_a_folder_that_holds_anything_else_is_not_replaced(command, tmp_path):
    (tmp_path / "small").mkdir()
    assert command(f"{NET} --sparsity 0.5").code == 0  # an empty one is taken
    (tmp_path / "small" / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    assert (
        command(f"{NET} --sparsity 0.9").complaint()
        == "small holds notes.txt beside an earlier save: it will not be replaced"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()} == before
    assert "shrink_net.py is a file" in command("shrink mlp --out shrink_net.py").complaint()


def test_a_full_disk_leaves_nothing_behind(command, tmp_path, monkeypatch):
    before = set(os.listdir(tmp_path))

    def full(source, target):
        raise OSError(28, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", full)
    assert command(f"{NET} --sparsity 0.5").complaint() == "small: No space left on device"
    assert {name for name in os.listdir(tmp_path) if name != "__pycache__"} == before


def test_an_earlier_network_is_replaced_also_by_what_is_made_of_it(command):
    first = read(command(f"{NET} --sparsity 0.25 --json"))
    again = read(
        command(f"{NET.replace('--out small', '')} --weights small --sparsity 0.5 --out small --json")
    )
    assert again["before"]["parameters"] == first["after"]["parameters"] > again["after"]["parameters"]
    assert again["before"]["bytes"] == first["after"]["bytes"] > again["after"]["bytes"]
