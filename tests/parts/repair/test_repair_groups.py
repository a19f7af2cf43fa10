"""Least squares of the layers that read coupled units, against a plain solver on what they are given."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import unfold

from group_nets import Attention, groups, images, small_resnet
from prunekit.errors import ModelError
from prunekit.pruning import prune

EXACT = {"name": "least_squares", "ridge": 0}


def seen_by(model, names, inputs):
    """What these layers read, one row for each output position, by the layer's name."""
    found = {}

    def keep(name):
        def hook(layer, args):
            x = args[0].detach()
            if isinstance(layer, nn.Conv2d):
                rows = unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
                found[name] = rows.transpose(1, 2).flatten(0, 1)
            else:
                found[name] = x.flatten(0, -2)

        return hook

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(keep(name))
    model(inputs)
    return found


def fitted_by_hand(layer, rows, gone):
    """(weights, bias) on the columns that are left which give nearest to what the layer gave."""
    weight = layer.weight.detach().flatten(1)
    outputs = rows @ weight.T
    if layer.bias is not None:
        outputs = outputs + layer.bias.detach()
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        gone = torch.cat([gone, gone.new_zeros(1)])
    solved = torch.linalg.lstsq(rows[:, ~gone], outputs, driver="gelsd").solution
    found = torch.zeros(len(gone), len(weight), dtype=weight.dtype)
    found[~gone] = solved
    return (found[:-1].T, found[-1]) if layer.bias is not None else (found.T, None)


def check(model, recipe, data, readers):
    """`readers`: by layer the group whose units it reads, and the columns of each unit."""
    whole = copy.deepcopy(model)
    pruned = prune(model, recipe, data)
    seen = seen_by(copy.deepcopy(whole), readers, data[0])
    for name, (group, columns) in readers.items():
        gone = columns(~pruned.kept[group])
        weight, bias = fitted_by_hand(whole.get_submodule(name), seen[name], gone)
        layer = model.get_submodule(name)
        rows = pruned.masks[f"{name}.weight"].flatten(1).any(1)  # others are units that went themselves
        assert bool(gone.any())
        assert torch.allclose(layer.weight.flatten(1)[rows], weight[rows], rtol=1e-6, atol=1e-8)
        if bias is not None:
            assert torch.allclose(layer.bias[rows], bias[rows], rtol=1e-6, atol=1e-8)
    return pruned


def test_convolutions_and_the_layer_behind_a_stream():
    model, (inputs, targets) = small_resnet().double(), images(24)
    readers = {
        **{
            f"stage{n}.0.conv2": (f"stage{n}.0.conv1", lambda off: off.repeat_interleave(9))
            for n in (1, 2, 3)
        },
        "stage1.0.conv1": ("conv1", lambda off: off.repeat_interleave(9)),
        "stage3.0.shortcut.0": ("stage2.0.conv2", lambda off: off),
        "fc": ("stage3.0.conv2", lambda off: off),
    }
    recipe = groups("random", 0.4, granularity={"residual": True}, repair=EXACT)
    data = (inputs.double(), targets)
    pruned = check(model, recipe, data, readers)
    masked = copy.deepcopy(model)(data[0])
    pruned.shrink(data[0][:2])
    assert torch.allclose(model(data[0]), masked)


def test_heads_and_hidden_layers():
    model = Attention().double()
    data = (torch.randn(40, 5, 12, dtype=torch.float64), torch.arange(40) % 4)
    readers = {
        "out": ("query (heads)", lambda off: off.repeat_interleave(4)),
        "down": ("up", lambda off: off),
    }
    recipe = groups("random", 0.4, granularity={"kinds": ["heads", "MLP width"]}, repair=EXACT)
    check(model, recipe, data, readers)


@pytest.mark.parametrize("score", ["random", "magnitude", "activation", "feature_taylor"])
def test_what_a_layer_gives_is_no_further_off_for_any_score(score):
    model, (inputs, targets) = small_resnet(), images(24)
    apart = {}
    for repair in ("none", "least_squares"):
        changed = copy.deepcopy(model)
        recipe = groups(score, granularity={"kinds": ["filters"]}, targets=["stage3.0.conv1"], repair=repair)
        prune(changed, recipe, (inputs, targets))
        given = model.stage3[0].act1(
            model.stage3[0].bn1(
                model.stage3[0].conv1(model.stage2(model.stage1(model.act1(model.bn1(model.conv1(inputs))))))
            )
        )
        apart[repair] = float(
            (changed.stage3[0].conv2(given) - model.stage3[0].conv2(given)).detach().square().mean()
        )
    assert apart["least_squares"] < 0.8 * apart["none"]


def test_a_layer_that_cannot_be_fitted_is_named():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Linear(6, 8)
            self.mix = nn.Parameter(torch.randn(8, 3))

        def forward(self, x):
            return torch.relu(self.into(x)) @ self.mix

    data = (torch.rand(8, 6), torch.arange(8) % 3)
    model = Product()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="mix is a parameter of '', a Product"):
        prune(model, groups(repair="least_squares"), data)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert prune(model, groups(), data).kept.kept == 4
