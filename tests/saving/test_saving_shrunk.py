"""Networks that were made smaller before they were saved."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from prunekit.errors import InputError, ModelError
from prunekit.models import ModelSettings
from prunekit.pruning import prune
from prunekit.saving import Architecture, load_masks, load_pretrained, save_pretrained
from small_nets import blobs, copied, mlp, recipe, same

LENET = Architecture(ModelSettings.parse("lenet5"), (1, 28, 28), 10)
HALF = {"granularity": "unit", "score": "random"}

USERS_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6 * 16, 9)
        self.out = nn.Linear(9, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.out(torch.relu(self.hidden(torch.flatten(x, 1))))
"""


def users_net(folder, seed=0):
    (folder / "users_net.py").write_text(USERS_CODE)
    scope = {}
    exec(USERS_CODE, scope)
    torch.manual_seed(seed)
    return scope["Net"]()


def shrunk(model, inputs, **settings):
    pruned = prune(model.eval(), recipe(**HALF, **settings), seed=1)
    pruned.shrink(inputs)
    return pruned


def test_masked_units_are_saved_and_loaded(tmp_path):
    model = mlp(10, 16, 8, 3)
    pruned = prune(model, recipe(granularity="unit"))
    save_pretrained(pruned, tmp_path / "net")
    assert same(copied(load_pretrained(tmp_path / "net", mlp(10, 16, 8, 3, seed=1))), copied(model))
    assert load_masks(tmp_path / "net") == pruned.masks
    description = json.loads((tmp_path / "net" / "prunekit.json").read_text())
    assert description["recipe"]["granularity"]["name"] == "unit"
    assert description["history"][0]["total"] == 24


def test_a_shrunk_network_is_loaded_onto_the_users_class(tmp_path):
    inputs = torch.randn(5, 2, 4, 4)
    pruned = shrunk(users_net(tmp_path), inputs)
    save_pretrained(pruned, tmp_path / "net")
    fresh = users_net(tmp_path, seed=3)
    assert load_pretrained(tmp_path / "net", fresh) is fresh
    assert torch.equal(fresh.eval()(inputs), pruned.model(inputs))
    assert same(copied(fresh), copied(pruned.model))
    assert fresh.hidden.in_features == fresh.conv.out_channels * 16 == fresh.norm.num_features * 16
    fresh(inputs).sum().backward()  # and trains


def test_in_a_fresh_process(tmp_path):
    inputs = torch.randn(5, 2, 4, 4)
    pruned = shrunk(users_net(tmp_path), inputs)
    save_pretrained(pruned, tmp_path / "net")
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from users_net import Net\n"
        "from prunekit.saving import load_pretrained\n"
        "model = load_pretrained('net', Net()).eval()\n"
        "torch.save(model(torch.load('inputs.pt', weights_only=True)), 'out.pt')\n"
        "print(sum(p.numel() for p in model.parameters()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=100, capture_output=True, text=True
    )
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), pruned.model(inputs))
    assert int(done.stdout) == sum(p.numel() for p in pruned.model.parameters())


def test_an_architecture_is_built_and_made_as_small(tmp_path):
    inputs = torch.randn(3, 1, 28, 28)
    pruned = shrunk(LENET.build(), inputs)
    save_pretrained(pruned, tmp_path / "net", architecture=LENET)
    dense = save_pretrained(LENET.build(), tmp_path / "dense", architecture=LENET)
    again = load_pretrained(tmp_path / "net")
    assert torch.equal(again.eval()(inputs), pruned.model(inputs))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "net", dense)]
    saved = 4 * (sum(p.numel() for p in LENET.build().parameters()) - pruned.shrunk.parameters_after)
    assert sizes[1] - sizes[0] == pytest.approx(saved, abs=1000 + pruned.shrunk.parameters_after / 8)


def test_a_plain_shrunk_module(tmp_path):
    inputs, _ = blobs()
    model = shrunk(mlp(10, 16, 8, 3), inputs).model
    save_pretrained(model, tmp_path / "net")
    assert same(copied(load_pretrained(tmp_path / "net", mlp(10, 16, 8, 3, seed=1))), copied(model))


def test_narrower_inputs(tmp_path):
    inputs, _ = blobs()
    pruned = prune(
        mlp(10, 16, 3).eval(), recipe(granularity={"name": "unit", "inputs": True}, score="random")
    )
    kept = pruned.shrink(inputs).kept_inputs
    save_pretrained(pruned, tmp_path / "net")
    again = load_pretrained(tmp_path / "net", mlp(10, 16, 3, seed=1))
    assert torch.equal(again(inputs[:, kept]), pruned.model(inputs[:, kept]))


def test_taken_out_only_once():
    inputs, _ = blobs()
    pruned = shrunk(mlp(10, 16, 3), inputs)
    assert "taken out" in str(pruned)
    assert all(bool(mask.all()) for mask in pruned.masks.values())
    pruned.masks.parameters(pruned.model)
    with pytest.raises(InputError, match="taken out already"):
        pruned.shrink(inputs)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.into = nn.Linear(10, width)
        self.block = nn.Linear(width, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        x = self.into(x)
        return self.out(x + torch.relu(self.block(x)))


@pytest.mark.parametrize(
    ("saved", "model", "message"),
    [
        (
            mlp(10, 16, 3),
            mlp(10, 8, 3),
            r"0\.weight has shape \(8, 10\) in the model, \(16, 10\) in .*8 units",
        ),
        (mlp(10, 16, 3), mlp(10, 16, 4), r"has shape \(4, 16\) in the model, \(3, 16\) in .*does not give"),
        (Residual(8), Residual(4), r"into\.weight has shape \(4, 10\) in the model, \(8, 10\) in.*cannot be"),
    ],
)
def test_what_taking_units_out_does_not_give_is_refused(tmp_path, saved, model, message):
    save_pretrained(saved, tmp_path / "net")
    before, parameters = copied(model), list(model.parameters())
    with pytest.raises(ModelError, match=message):
        load_pretrained(tmp_path / "net", model)
    assert same(before, copied(model))
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
