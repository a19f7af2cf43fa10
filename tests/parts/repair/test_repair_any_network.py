"""Repairs on any network: what each layer that reads units gives is as near to before as can be.

The squared distance is convex in what a repair may change: it is smallest where its derivatives are 0.
"""

import copy

import pytest
import torch
from repair_nets import mend_groups
from torch import nn

from group_nets import NETWORKS, Halves, coupled_of, given_to, groups, images, small_resnet
from prunekit.errors import ModelError
from prunekit.graph import Coupled, traced
from prunekit.parts.repair import ChannelScale, FoldMean, LeastSquares, SietsmaDow
from prunekit.pruning import prune


def readers(group):
    """The layers that read a group, with their members."""
    found = [member for member in group.members if member.role == "consumer"]
    return {member.tensor.removesuffix(".weight"): member for member in found}


def derivatives(before, after, x):
    """(of the weights, of the bias): the derivatives of the squared distance of a layer's outputs."""
    after.requires_grad_()
    parameters = list(after.parameters())
    distance = (after(x) - before(x).detach()).square().sum()
    scale = float(before(x).detach().square().sum())
    found = [each / scale for each in torch.autograd.grad(distance, parameters)]
    after.requires_grad_(False)
    return found[0], found[1] if len(found) > 1 else None


def changed(coupled, repair, inputs, removed):
    """Mend a copy; the network before, what its layers were given, the network after, and the masks."""
    whole = copy.deepcopy(coupled.model)
    names = {name for group in coupled.groups for name in readers(group)}
    with given_to(coupled.model, names) as seen, torch.no_grad():
        coupled.model(inputs)
    masks = mend_groups(coupled, repair, inputs, removed)
    return whole, seen, coupled.model, masks


def every_third(coupled):
    return {group.name: list(range(0, group.units, 3))[: group.units - 1] for group in coupled.groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_least_squares(name):
    coupled, inputs = coupled_of(name)
    whole, seen, model, masks = changed(coupled, LeastSquares(ridge=0), inputs, every_third(coupled))
    for layer, (x,) in seen.items():
        before, after = whole.get_submodule(layer), model.get_submodule(layer)
        kept = masks[f"{layer}.weight"]
        assert not after.weight[~kept].any()
        assert not torch.equal(after.weight[kept], before.weight[kept])
        with torch.no_grad():  # rows that go themselves say nothing
            for each in (before, after):
                each.weight.mul_(rows_kept(each, kept))
        weight, bias = derivatives(before, after, x)
        assert float((weight * kept).abs().max()) < 1e-8
        if bias is not None and f"{layer}.bias" in masks:
            bias = bias[masks[f"{layer}.bias"]]
        assert bias is None or float(bias.abs().max()) < 1e-8


def rows_kept(layer, kept):
    """1 for the outputs of a layer that stay; 0 for those that are removed."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return kept.any(0, keepdim=True).flatten(2).any(2)[..., None, None].double()
    dims = [0] if type(layer).__name__ == "Conv1D" else list(range(1, kept.dim()))
    found = kept
    for dim in dims:
        found = found.any(dim, keepdim=True)
    return found.double()


@pytest.mark.parametrize("name", NETWORKS)
def test_channel_scale(name):
    for group in coupled_of(name)[0].groups:
        coupled, inputs = coupled_of(name, [group.name])
        check_scales(coupled, inputs, every_third(coupled))


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("unet", {"a.1.0": [0, 3, 4], "up2": [1, 2, 6]}),  # both are read by d.0
        ("densenet", {"body.0": [0, 5], "body.1.conv2": [1, 2], "body.2.conv2": [3]}),
    ],
)
def test_channel_scale_of_a_layer_that_reads_two_groups(name, removed):
    coupled, inputs = coupled_of(name, list(removed))
    check_scales(coupled, inputs, removed)


def check_scales(coupled, inputs, removed):
    whole, seen, model, _ = changed(coupled, ChannelScale(), inputs, removed)
    for layer, (x,) in seen.items():
        before, after = whole.get_submodule(layer), model.get_submodule(layer)
        weight, _ = derivatives(before, after, x)
        for group in coupled.groups:
            if layer not in readers(group):
                continue
            member = readers(group)[layer]
            for unit, index in enumerate(member.indices):
                own = [
                    each.movedim(member.dim, 0)[list(index)] for each in (weight, after.weight, before.weight)
                ]
                if unit in removed[group.name]:
                    assert not own[1].any()
                elif index:
                    scales = (own[1] / own[2]).masked_select(own[2] != 0)
                    assert torch.allclose(scales, scales[:1].expand_as(scales), rtol=1e-9)
                    assert abs(float((own[0] * own[1]).sum())) < 1e-8


@pytest.mark.parametrize("repair", [LeastSquares(ridge=0), ChannelScale(), FoldMean(), SietsmaDow()])
def test_heads_and_their_widths_cross_in_the_layer_that_reads_them(repair):
    heads, width = (
        "bert.encoder.layer.0.attention.self.query (heads)",
        "bert.encoder.layer.0.attention.self.value",
    )
    coupled, inputs = coupled_of("hf-bert", [heads, width])
    removed = {heads: [1], width: [2]}
    whole, seen, model, masks = changed(coupled, repair, inputs, removed)
    layer = "bert.encoder.layer.0.attention.output.dense"
    before, after = whole.get_submodule(layer), model.get_submodule(layer)
    (x,) = seen[layer]
    kept = masks[f"{layer}.weight"]
    assert (~kept[0]).nonzero().flatten().tolist() == [2, 4, 5, 6, 7, 10, 14]
    assert not after.weight[:, ~kept[0]].any()
    weight, bias = derivatives(before, after, x)
    if isinstance(repair, LeastSquares):
        assert float((weight * kept).abs().max()) < 1e-8
    if isinstance(repair, ChannelScale):  # each crossing, one column here, has its factor
        assert float((weight * after.weight).sum(0).abs().max()) < 1e-8
    else:
        assert float(bias.abs().max()) < 1e-8


BIASED = ["halves", "hf-bert", "hf-gpt2"]


@pytest.mark.parametrize("repair", [FoldMean(), SietsmaDow()])
@pytest.mark.parametrize("name", BIASED)
def test_the_mean_of_what_a_layer_gives_stays(name, repair):
    coupled, inputs = coupled_of(name)
    whole, seen, model, masks = changed(coupled, repair, inputs, every_third(coupled))
    for layer, (x,) in seen.items():
        before, after = whole.get_submodule(layer), model.get_submodule(layer)
        _, bias = derivatives(before, after, x)
        stays = (
            masks[f"{layer}.bias"] if f"{layer}.bias" in masks else torch.ones_like(bias, dtype=torch.bool)
        )
        if isinstance(repair, FoldMean):
            unmasked = masks[f"{layer}.weight"]
            assert torch.equal(after.weight[unmasked], before.weight[unmasked])
            assert float(bias[stays].abs().max()) < 1e-8


class Fork(nn.Module):
    """A layer read by a convolution, by another beside other channels, and by a transposed one in groups."""

    def __init__(self, groups):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.beside = nn.Conv2d(2, 8, 3), nn.Conv2d(2, 3, 3)
        self.left, self.right = nn.Conv2d(8, 5, 2), nn.Conv2d(11, 4, (2, 1), stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=groups)

    def forward(self, x):
        y = torch.sigmoid(self.first(x))
        return [self.left(y), self.right(torch.cat([self.beside(x), y], 1)), self.up(y)]


def fork(groups_of_up=1):
    model = Fork(groups_of_up).double()
    inputs = torch.randn(20, 2, 7, 7, dtype=torch.float64)
    return Coupled(model, traced(model, inputs[:2]), ("first",), inputs[:2]), inputs


def like(model, unit, other, sign=1.0):
    with torch.no_grad():
        model.first.weight[unit] = sign * model.first.weight[other]
        model.first.bias[unit] = sign * model.first.bias[other]


@pytest.mark.parametrize(("sign", "exact"), [(1.0, ["left", "right", "up"]), (-1.0, ["left", "right"])])
def test_equal_and_opposite_units_cost_nothing_in_any_layer_that_reads_them(sign, exact):
    coupled, inputs = fork()
    model = coupled.model
    like(model, 6, 1, sign)
    expected = model(inputs)
    mend_groups(coupled, SietsmaDow(), inputs, {"first": [6]})
    # a constant is none behind a transposed convolution: its outputs read different parts of the kernel
    found = dict(zip(["left", "right", "up"], zip(model(inputs), expected, strict=True), strict=True))
    assert all(torch.allclose(*found[name], rtol=0, atol=1e-12) for name in exact)
    assert not model.left.weight[:, 6].any()
    assert not model.right.weight[:, 9].any()
    assert not model.up.weight[6].any()


def test_a_unit_has_its_stand_in_among_those_that_the_same_outputs_read():
    coupled, inputs = fork(groups_of_up=2)
    model = coupled.model
    units = coupled.groups[0].units
    members = {member.tensor: member for member in coupled.groups[0].members}
    pair = members["first.weight"].indices[0], members["first.weight"].indices[units - 1]
    for one, other in zip(*pair, strict=True):
        like(model, other, one)
    before = model(inputs)
    mend_groups(coupled, SietsmaDow(), inputs, {"first": [units - 1]})
    for found, expected in zip(model(inputs), before, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("repair", [FoldMean(), SietsmaDow(), ChannelScale(), LeastSquares()])
def test_a_layer_that_does_not_read_the_units_stays_as_it_is(repair):
    coupled, inputs = coupled_of("halves")
    whole, _, model, _ = changed(coupled, repair, inputs, {"both": [1]})
    assert not torch.equal(model.left.weight, whole.left.weight)
    assert torch.equal(model.right.weight, whole.right.weight)
    assert torch.equal(model.right.bias, whole.right.bias)


@pytest.mark.parametrize("repair", ["fold_mean", "sietsma_dow"])
def test_a_layer_without_bias_is_named_before_anything_changes(repair):
    model = small_resnet()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=f"'{repair}'.*'stage1.0.conv1'.*'stage1.0.conv2', which has none"):
        prune(model, groups("random", repair=repair), images())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("repair", ["fold_mean", "sietsma_dow", "channel_scale", "least_squares"])
def test_a_recipe_runs_and_its_network_shrinks(repair):
    model = Halves().double()
    data = torch.randn(30, 6, dtype=torch.float64), torch.arange(30) % 3
    pruned = prune(model, groups("thinet", 0.25, repair=repair), data)
    masked = model(data[0])
    pruned.shrink(data[0][:2])
    assert torch.allclose(model(data[0]), masked)
