"""Scores relative to other weights of the layer, against loops over single numbers."""

from math import log2

import pytest
import torch
from torch import nn

from prunekit import Recipe, prune
from prunekit.parts.context import StepContext
from prunekit.parts.scores import LAMP, RIA, MagnitudePerBit
from small_nets import mlp
from three_nets import NETWORKS, TIGHT, names_of, scored


@NETWORKS
def test_lamp_divides_by_every_square_that_is_at_least_as_large(network):
    model, data = network()
    for name, value in scored(LAMP(), model, data).items():
        squares = model.get_parameter(name).detach().square().flatten()
        shares = [float(each / squares[squares >= each].sum()) for each in squares]
        torch.testing.assert_close(value.flatten(), torch.tensor(shares, dtype=torch.float64), **TIGHT)


def test_lamp_by_hand_with_equal_weights_and_zeros():
    def lamp(*weights):
        return LAMP()(StepContext({"w": torch.tensor([weights])}))["w"].flatten().tolist()

    assert lamp(3.0, -1.0, 2.0) == pytest.approx([1, 1 / 14, 4 / 13])
    assert lamp(1.0, -1.0) == pytest.approx([1 / 2, 1])  # the first counts as the smaller one
    assert lamp(0.0, 0.0) == [0, 0]


def test_lamp_never_empties_a_layer():
    model = mlp(10, 6, 4)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    recipe = Recipe(
        score="lamp",
        allocation={"name": "global", "floor": 0},
        schedule={"name": "one_shot", "sparsity": 0.97},
    )
    masks = prune(model, recipe).masks
    assert all(bool(mask.any()) for mask in masks.values())


@NETWORKS
def test_ria_adds_the_shares_of_input_and_output(network):
    model, data = network()
    found, inputs = scored(RIA(), model, data), {}
    for name in names_of(model):
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_hook(lambda _, args, __, name=name: inputs.__setitem__(name, args[0]))
    model.eval()(data[0])
    for name, value in found.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        weight, x = layer.weight.detach().abs(), inputs[name].detach()
        groups = getattr(layer, "groups", 1)
        rows = weight.flatten(1)
        if isinstance(layer, nn.Conv2d):
            x = nn.functional.unfold(
                x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
            ).movedim(1, 2)
        x = x.reshape(-1, x.shape[-1])
        per_group = rows.shape[1]
        expected = torch.zeros_like(rows)
        for row in range(len(rows)):
            group = row // (len(rows) // groups)
            mates = range(group * len(rows) // groups, (group + 1) * len(rows) // groups)
            for column in range(per_group):
                w = float(rows[row, column])
                shares = w / sum(float(rows[mate, column]) for mate in mates) + w / float(rows[row].sum())
                norm = float(x[:, group * per_group + column].square().mean().sqrt())
                expected[row, column] = shares * norm**0.5
        torch.testing.assert_close(value, expected.view(weight.shape), **TIGHT)


@NETWORKS
def test_magnitude_per_bit_divides_by_what_a_position_costs(network):
    model, data = network()
    with torch.no_grad():
        for name in names_of(model):
            weight = model.get_parameter(name)
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7] = 0
    for name, value in scored(MagnitudePerBit(value_bits=3), model, data).items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        rows, found = layer.weight.detach().flatten(1).double(), value.flatten(1)
        size = len(rows) // getattr(layer, "groups", 1)  # the rows of a group read the same inputs
        for row in range(len(rows)):
            group = rows[row // size * size :][:size]
            for column in range(rows.shape[1]):
                odds = 1.0
                for part, power in ((rows[row], 1), (group[:, column], 1), (group.flatten(), -1)):
                    share = min((int((part != 0).sum()) + 0.5) / len(part), 1 - 1e-4)
                    odds *= (share / (1 - share)) ** power
                bits = -log2(odds / (1 + odds)) + 3
                assert float(found[row, column]) == pytest.approx(
                    float(rows[row, column]) ** 2 / bits, rel=1e-9
                )


def test_of_equal_weights_those_that_lie_alone_go_first():
    weight = torch.zeros(1, 6, 6)
    weight[0, 0, :5] = weight[0, :5, 0] = 1.0  # a full row and a full column
    weight[0, 4, 4] = 1.0  # and one that shares its row and its column with little
    layer = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight[0])
    recipe = Recipe(
        score="magnitude_per_bit",
        schedule={"name": "one_shot", "sparsity": 27 / 36},
        allocation={"name": "global"},
    )
    masks = prune(nn.Sequential(layer), recipe).masks
    assert int(masks["0.weight"].sum()) == 9
    assert not masks["0.weight"][4, 4]
