"""`prunekit pack`, `unpack` and `inspect` of a packed file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prunekit import Recipe, prune
from prunekit.masks import Masks
from prunekit.models import ModelSettings
from prunekit.packing import pack, unpack
from prunekit.saving import Architecture, load_masks, load_pretrained, save_pretrained

MLP = Architecture(ModelSettings.parse({"name": "mlp", "hidden": [20]}), (1, 6, 6), 3)


@pytest.fixture
def saved(command):
    """A network in the folder `net` of the current one."""
    model = MLP.build()
    with torch.no_grad():
        model.fc1.weight.copy_((model.fc1.weight * 20).round() / 16)
    masks = Masks({"fc1.weight": model.fc1.weight != 0})
    save_pretrained(model, "net", masks=masks, architecture=MLP)
    return model


def test_there_and_back(command, saved):
    done = command("pack net --out small.pk")
    assert done.code == 0, done.err
    size = Path("small.pk").stat().st_size
    assert done.out == f"small.pk: {size:,} bytes, {4 * 803 / size:.1f} times smaller than in float32\n"
    assert command("unpack small.pk --out again").code == 0
    again = load_pretrained("again")
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in again.state_dict().items())
    assert load_masks("again") == load_masks("net")
    assert command("pack again --out second.pk").code == 0
    assert Path("second.pk").read_bytes() == Path("small.pk").read_bytes()


def test_units_in_order_are_the_same_function_in_fewer_bytes(command, saved):
    assert command("pack net --out plain.pk").code == 0
    done = command("pack net --out ordered.pk --reorder")
    assert done.code == 0, done.err
    assert Path("ordered.pk").stat().st_size < Path("plain.pk").stat().st_size
    inputs = torch.randn(5, 1, 6, 6)
    torch.testing.assert_close(unpack("ordered.pk")(inputs), saved(inputs))
    assert load_masks("ordered.pk").kept == load_masks("net").kept
    refused = command("pack net --out ordered.pk --reorder --history")
    assert refused.code == 2
    assert "--reorder" in refused.err


def test_units_of_a_pattern_are_not_put_in_another_order(command):
    chosen = {"granularity": "n:m", "schedule": {"name": "one_shot", "sparsity": 0.5}}
    pruned = prune(MLP.build(), Recipe.parse(chosen))
    save_pretrained(pruned, "pattern", architecture=MLP)
    refused = command("pack pattern --out ordered.pk --reorder")
    assert refused.code == 2
    assert "neighbouring inputs" in refused.err
    assert not Path("ordered.pk").exists()


@pytest.mark.parametrize("options", ["", "--coding published", "--coding published --gap-bits 3"])
def test_the_table(command, saved, options):
    assert command(f"pack net --out small.pk {options}").code == 0
    shown = command("inspect small.pk").out
    assert max(map(len, shown.splitlines())) <= 80
    assert "fc1 " in shown
    assert f"coding: {'published' if options else 'adaptive'}" in shown
    values = json.loads(command("inspect small.pk --json").out)
    assert values["size"] == Path("small.pk").stat().st_size
    layer = values["layers"][0]
    assert (layer["name"], layer["weights"]) == ("fc1.weight", 720)
    assert layer["kept"] == int((saved.fc1.weight != 0).sum())
    assert layer["gap_bits"] == (3 if "3" in options else layer["gap_bits"])


def test_a_name_too_long_for_its_column_is_above_its_row(command):
    layers = nn.ModuleDict({"self_attention_output_projection": nn.Linear(40, 40), "head": nn.Linear(40, 3)})
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_((parameter * 20).round() / 16)
    pack(layers, "long.pk")
    shown = command("inspect long.pk")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    for row in json.loads(command("inspect long.pk --json").out)["layers"]:
        name, numbers = row["name"].removesuffix(".weight"), f"{row['bytes']:,.0f}"
        (place,) = [number for number, line in enumerate(lines) if line.split()[:1] == [name]]
        assert len(name) < 12 or lines[place].split() == [name]
        assert lines[place + (len(name) >= 12)].endswith(f" {numbers}")


def test_how_much_is_read_has_a_limit(command, saved):
    command("pack net --out small.pk")
    assert command("inspect small.pk --max-bytes 3212").code == 0
    refused = command("inspect small.pk --max-bytes 3211").complaint()
    assert "its tensors take 3,212, and 3,211 are allowed" in refused
    for line in ("inspect small.pk --groups --max-bytes 99", "inspect net --max-bytes 99"):
        assert (
            "--max-bytes goes with the table of a packed file, without other options"
            in command(line).complaint()
        )


def test_a_packed_file_stands_where_a_folder_does(command, saved):
    command("pack net --out small.pk")
    shown = command("inspect small.pk --groups")
    assert "neurons" in shown.out, shown.err
    for line in ("inspect {} --batch 3 --json", "inspect {} --input-shape 1,6,6 --json"):
        small, net = (json.loads(command(line.format(each)).out) for each in ("small.pk", "net"))
        assert small["layers"] == net["layers"]


def test_a_packed_network_of_own_code_is_its_weights(command, own_models):
    """As what refuses it says."""
    model, fresh = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    pack(model, "own.pk", masks=Masks({"0.weight": model[0].weight > 0}))
    assert (
        "write module:function in its place, and --weights own.pk"
        in command("inspect own.pk --groups").complaint()
    )
    line = "export own_models_of_cli:small --weights own.pk --input-shape 4 --to safetensors --out own.st"
    assert command(line).code == 0
    wanted = unpack("own.pk", fresh).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in load_file("own.st").items())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pack net --out small.pk --coding zip", "coding = 'zip': there is no such coding"),
        ("pack net --out small.pk --gap-bits 4", "gap_bits = 4: write 1 to 12, with coding='published'"),
        ("pack net --out net", "net is a folder: name a file"),
        ("unpack net/prunekit.json --out other", "was not written by prunekit pack"),
        ("unpack absent.pk --out other", "cannot read absent.pk: No such file or directory"),
        ("pack absent/net --out small.pk", "there is no folder absent/net"),
        ("inspect net/model.safetensors", "net/model.safetensors is no file that prunekit pack wrote"),
        ("export net/prunekit.json --to torch --out net.pt2", "one of weights goes with --weights"),
        ("pack lenet5 --out small.pk", "add --data or, where the command has it, --input-shape"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(command, saved, line, message):
    before = sorted(Path().iterdir())
    assert message in command(line).complaint()
    assert sorted(Path().iterdir()) == before


def test_a_file_without_levels_has_no_table(command):
    torch.manual_seed(0)
    pack(nn.Linear(3, 2), "dense.pk")
    assert command("inspect dense.pk").out.startswith("no weights have levels\nP, P+Q")
