"""Networks that lost coupled units and kept their classes."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from forged import redescribed
from prunekit.errors import DataError, ModelError
from prunekit.graph import prune_groups, restore_sizes, size_attributes
from prunekit.saving import load_pretrained, save_pretrained
from small_nets import copied, mlp, same
from zoo import made

ZOO = str(Path(__file__).parent.parent / "zoo")
FRESH = """
import sys, torch
sys.path.append({zoo!r})
torch.set_num_threads(1)
from zoo_convnets import resnet_bottleneck
from prunekit import load_pretrained
model = load_pretrained("net", resnet_bottleneck()).eval()
inputs = torch.load("inputs.pt", weights_only=True)
torch.save(model(inputs), "outputs.pt")
model.train()(inputs).sum().backward()
print(sum(p.numel() for p in model.parameters()), sum(p.grad is not None for p in model.parameters()))
"""


def shrunk(name, **settings):
    model, inputs = made(name)
    result = prune_groups(model, inputs, 0.5, **settings)
    assert result.form == "modules", result.reason
    return result, inputs


def run(model, inputs):
    found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found if isinstance(found, torch.Tensor) else found[0]


def test_a_bottleneck_resnet_in_a_fresh_process(tmp_path):
    result, inputs = shrunk("resnet-bottleneck")
    save_pretrained(result, tmp_path / "net")
    torch.save(inputs, tmp_path / "inputs.pt")
    code = FRESH.format(zoo=ZOO)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=100, capture_output=True, text=True
    )
    assert torch.equal(torch.load(tmp_path / "outputs.pt", weights_only=True), result.model.eval()(inputs))
    parameters = list(result.model.parameters())
    assert done.stdout.split() == [str(sum(p.numel() for p in parameters)), str(len(parameters))]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("densenet", {"residual": True}),
        ("shufflenet", {}),
        ("lstm", {}),
        ("hf-gpt2", {"kinds": ["heads", "MLP width"]}),
        ("hf-llama-tied", {"residual": True}),
    ],
)
def test_shapes_sizes_values_and_ties_are_restored(tmp_path, name, settings):
    if name.startswith("hf"):
        pytest.importorskip("transformers")
    result, inputs = shrunk(name, **settings)
    save_pretrained(result.model, tmp_path / "net")  # the network alone, as after retraining it
    fresh, _ = made(name)
    torch.nn.init.normal_(next(fresh.parameters()))
    assert load_pretrained(tmp_path / "net", fresh) is fresh
    assert same(copied(fresh), copied(result.model))
    assert size_attributes(fresh) == size_attributes(result.model)
    assert [key for key, _ in fresh.named_parameters()] == [key for key, _ in result.model.named_parameters()]
    assert torch.equal(run(fresh.eval(), inputs), run(result.model.eval(), inputs))
    run(fresh.train(), inputs).sum().backward()


@pytest.mark.parametrize("name", ["resnext", "shufflenet", "ghostnet", "unet", "mlp-mixer", "densenet"])
def test_no_network_is_refused_that_units_were_taken_out_of(name):
    model, inputs = made(name)
    prune_groups(model, inputs, 0.5, residual=True)
    fresh, _ = made(name)
    shapes = {key: value.shape for key, value in [*model.state_dict().items(), *model.named_buffers()]}
    restore_sizes(fresh, shapes, size_attributes(model))
    assert {key: value.shape for key, value in fresh.state_dict().items()}.items() <= shapes.items()
    assert size_attributes(fresh) == size_attributes(model)


class Turning(nn.Module):
    """Two-headed attention with a table of angles that is no part of the state."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.fc = nn.Linear(width, width), nn.Linear(width, 3)
        self.register_buffer("scales", torch.linspace(0.5, 2, width // heads), persistent=False)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (
            each(x).view(n, t, self.num_heads, -1).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        q, k = q * self.scales, k * self.scales
        shares = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        return self.fc(self.out((shares @ v).transpose(1, 2).flatten(2)))


def test_buffers_outside_the_state_are_restored(tmp_path):
    inputs = torch.randn(3, 5, 8)
    with torch.no_grad():
        model = Turning()
        model.query.weight[::4] = 0  # so that the first place of each head is the least
        model.key.weight[::4] = 0
    model.value.requires_grad_(False)
    result = prune_groups(model.eval(), inputs, 0.25, kinds=["head width"], ignore=["value"])
    assert result.form == "modules", result.reason
    assert model.scales.shape == (3,)
    save_pretrained(result, tmp_path / "net")
    again = load_pretrained(tmp_path / "net", Turning()).eval()
    assert torch.equal(again.scales, torch.linspace(0.5, 2, 4)[1:])
    assert torch.equal(again(inputs), model(inputs))


def test_a_network_that_was_shrunk_twice(tmp_path):
    result, inputs = shrunk("regnet")
    result = prune_groups(result.model, inputs, 0.5)
    save_pretrained(result, tmp_path / "net")
    again = load_pretrained(tmp_path / "net", made("regnet")[0]).eval()
    assert torch.equal(again(inputs), result.model.eval()(inputs))


def test_a_chain_whose_saved_form_is_not_one_of_the_chain_analysis(tmp_path):
    """A chain is held to its own units, but what `prune_groups` returned is taken as it is."""
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.PReLU(6), nn.Flatten(), nn.Linear(6 * 36, 3)).eval()
    fresh, inputs = copy.deepcopy(model), torch.randn(2, 1, 8, 8)
    result = prune_groups(model, inputs, 0.5)
    save_pretrained(result, tmp_path / "net")
    assert torch.equal(load_pretrained(tmp_path / "net", fresh)(inputs), model(inputs))
    assert fresh[1].num_parameters == 3


def test_what_the_shrinking_did_is_told(tmp_path):
    result, _ = shrunk("vgg")
    save_pretrained(result, tmp_path / "net")
    found = json.loads((tmp_path / "net" / "prunekit.json").read_text())["shrunk"]
    assert found["parameters_after"] == result.parameters_after
    assert found["groups"][0] == {
        "name": result.groups[0].name,
        "before": result.groups[0].before,
        "after": result.groups[0].after,
    }
    assert 0 <= found["deviation"]["relative"] <= found["deviation"]["tolerance"]


def test_another_network_is_refused_and_left_as_it_was(tmp_path):
    result, _ = shrunk("resnet-basic")
    save_pretrained(result, tmp_path / "net")
    other = made("resnet-bottleneck")[0]
    with pytest.raises(ModelError, match="is another one: the file lacks"):
        load_pretrained(tmp_path / "net", other)
    saved = json.loads((tmp_path / "net" / "prunekit.json").read_text())
    model = made("resnet-basic")[0]
    before, sizes = copied(model), size_attributes(model)
    for change, message in (
        ({"nowhere": {"groups": 1}}, "'nowhere' keeps no size 'groups'"),
        ({"body.1.conv1.0": {"padding": 1}}, "keeps no size 'padding'"),
        ({"body.1.conv1.0": {"groups": [1]}}, "keeps no size 'groups'"),
    ):
        redescribed(tmp_path / "net", sizes={**saved["sizes"], **change})
        with pytest.raises(ModelError, match=message):
            load_pretrained(tmp_path / "net", model)
        assert same(copied(model), before)
        assert size_attributes(model) == sizes
    redescribed(tmp_path / "net", sizes=[1])
    with pytest.raises(DataError, match=r"prunekit\.json was not written by prunekit: sizes"):
        load_pretrained(tmp_path / "net", model)


def test_a_chain_keeps_its_outputs(tmp_path):
    save_pretrained(mlp(10, 16, 3), tmp_path / "net")
    with pytest.raises(ModelError, match="does not give"):
        load_pretrained(tmp_path / "net", mlp(10, 16, 4))
