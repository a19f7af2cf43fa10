"""The bias against loops over the examples."""

import pytest
import torch
import torch.nn.functional as F
from repair_nets import context_of, convnet, inputs, mend, mlp
from torch import nn

from prunekit.parts.repair import FoldMean, LeastSquares, SietsmaDow


@torch.no_grad()
def test_linear_bias_is_mean_times_weight():
    net, x = mlp(), inputs(90, 7)
    hidden, old = net[:2](x), net[2].weight.clone()
    bias = net[2].bias.clone()
    mend(net, FoldMean(), x, {"0": [1, 4]})
    for j in range(5):
        lost = sum(hidden[:, i].mean() * old[j, i] for i in (1, 4))
        assert torch.allclose(net[2].bias[j], bias[j] + lost)
    rest = [0, 2, 3, 5, 6, 7, 8]
    assert torch.equal(net[2].weight[:, rest], old[:, rest])
    assert bool((net[2].weight[:, [1, 4]] == 0).all())


@torch.no_grad()
def test_the_mean_of_a_convolutions_output_stays_with_padding():
    net, x = convnet(padding=1), inputs(90, 2, 8, 8)
    before = net[:3](x).mean((0, 2, 3))
    mend(net, FoldMean(), x, {"0": [1, 4]})
    assert torch.allclose(net[:3](x).mean((0, 2, 3)), before)


@torch.no_grad()
def test_without_padding_a_constant_times_the_sum_of_the_kernel():
    net, x = convnet(), inputs(20, 2, 8, 8)
    net[0].weight[1] = 0
    constant = torch.sigmoid(net[0].bias[1])
    expected = net[2].bias + constant * net[2].weight[:, 1].sum((1, 2))
    mend(net, FoldMean(), x, {"0": [1]})
    assert torch.allclose(net[2].bias, expected)


@torch.no_grad()
def test_a_layer_that_loses_all_its_units_gives_its_mean():
    net, x = mlp(), inputs(90, 7)
    before = F.linear(net[:2](x), net[2].weight, net[2].bias).mean(0)
    mend(net, FoldMean(), x, {"0": list(range(9))})
    assert torch.allclose(net[:3](x), before.expand(90, -1))


def test_flags_and_gradients_are_left_alone():
    net, x = mlp(), inputs(20, 7)
    net.train()
    net.append(nn.Dropout())
    net[0].weight.requires_grad_(False)
    mend(net, FoldMean(), x, {"0": [1]})
    assert all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("repair", [FoldMean(), SietsmaDow(), LeastSquares()])
def test_what_is_removed_is_zero_without_help_from_the_loop(repair):
    net = mlp()
    told = context_of(net, repair, inputs(20, 7), {"0": [1, 4], "2": [3]})
    repair(told)
    removed = [parameter[~mask] for parameter, mask in told.masks.parameters(net)]
    assert len(removed) == 5  # weights and biases of the two layers, weights of the last
    assert all(len(each) and bool((each == 0).all()) for each in removed)
