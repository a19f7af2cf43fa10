"""Which stand-in is chosen, against every possibility tried out on the outputs themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from repair_nets import context_of, convnet, inputs, mend, mlp
from torch import nn

from prunekit.parts.repair import FoldMean, NoRepair, SietsmaDow
from prunekit.parts.repair.unit_repairs import substitutes, unit_covariance, units_alike
from prunekit.statistics.inputs import consumers


def by_trial(outputs, unit, alive):
    """(deviation, sign, partner) of the best stand-in for a unit; outputs: (units, columns, observations)."""
    own = outputs[unit]

    def rms(x):
        return float(x.square().mean().sqrt())

    tried = [(rms(own - own.mean(1, keepdim=True)), 0, unit)]
    for other in alive:
        total = (own + outputs[other]).mean(1, keepdim=True)
        tried.append((rms(own - outputs[other]), 1, other))
        tried.append((rms(own - (total - outputs[other])), -1, other))
    return min(tried)


@given(st.integers(0, 10_000))
def test_the_choice_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    units, columns = 6, 1 + seed % 3
    outputs = torch.randn(units, columns, 30, generator=generator, dtype=torch.float64)
    outputs[3:] += torch.randn(3, 1, 1, generator=generator, dtype=torch.float64) * outputs[:3]
    outputs[4] -= 2 * outputs[0]
    mean = outputs.mean(2)
    apart = outputs - mean.unsqueeze(2)
    covariance = torch.einsum("ucn,vcn->uv", apart, apart) / (columns * 30)
    removed = torch.tensor([True, False, False, True, True, False])
    alive = torch.tensor([False, True, True, False, False, True])
    found = substitutes(covariance, mean, removed, alive)
    for unit in (0, 3, 4):
        deviation, sign, partner = by_trial(outputs, unit, [1, 2, 5])
        assert float(found.deviation[unit]) == pytest.approx(deviation, rel=1e-9)
        assert (int(found.sign[unit]), int(found.partner[unit])) == (sign, partner)
    assert not found.sign[alive].any()


def test_moments_are_those_of_what_the_layers_read():
    net, x = convnet(), inputs(100, 2, 8, 8)
    told = context_of(net, SietsmaDow(), x, {"0": [], "2": []})
    mean, channel_mean, covariance = (told.statistics[each] for each in SietsmaDow.needs)
    maps, rows = net[:2](x), net[:5](x)
    by_channel = maps.transpose(0, 1).flatten(1)
    (unit, at), *others = units_alike(units_of(told, "2", "0"), 6)
    assert unit.tolist() == list(range(6))
    assert not others
    assert torch.allclose(unit_covariance(covariance["2.weight"], at), torch.cov(by_channel, correction=0))
    assert torch.allclose(channel_mean["2.weight"][0], by_channel.mean(1))
    patches = nn.functional.unfold(maps, (3, 2), stride=(2, 1))
    assert torch.allclose(mean["2.weight"][0], patches.mean((0, 2)))
    by_place = rows.unflatten(1, (4, -1)).permute(2, 1, 0)
    expected = torch.stack([torch.cov(place, correction=0) for place in by_place]).mean(0)
    ((_, at),) = units_alike(units_of(told, "5", "2"), 4)
    assert torch.allclose(unit_covariance(covariance["5.weight"], at), expected)
    assert torch.allclose(channel_mean["5.weight"][0], rows.mean(0))
    assert torch.allclose(mean["5.weight"][0], rows.mean(0))


def units_of(told, layer, group):
    """Of each input of a layer the unit of the group."""
    return consumers(told.coupled)[f"{layer}.weight"].units[group].flatten()


def test_units_that_are_as_many_inputs():
    found = list(units_alike(torch.tensor([2, -1, 0, 2, 3, 0]), 5))
    assert [(unit.tolist(), at.tolist()) for unit, at in found] == [([3], [[4]]), ([0, 2], [[2, 5], [0, 3]])]


@torch.no_grad()
def test_worked_by_hand():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 1)).double()
    net[0].weight.copy_(torch.eye(3))
    net[2].weight.copy_(torch.tensor([[2.0, 3.0, 5.0]]))
    net[2].bias.fill_(7.0)
    x = torch.tensor([[1.0, 4.0, 1.0], [2.0, 3.0, 2.0], [3.0, 2.0, 3.0]], dtype=torch.float64)
    mend(net, SietsmaDow(), x, {"0": [1, 2]})  # o1 = 5 - o0 and o2 = o0
    assert torch.allclose(net[2].weight, torch.tensor([[2.0 - 3 + 5, 0, 0]]).double())
    assert torch.allclose(net[2].bias, torch.tensor([7.0 + 5 * 3]).double())


@torch.no_grad()
def test_one_removed_unit_never_costs_more_than_its_mean():
    x = inputs(200, 7)
    for unit in range(9):
        errors = []
        for repair in (SietsmaDow(), FoldMean(), NoRepair()):
            net = mlp()
            before = net[:3](x)
            mend(net, repair, x, {"0": [unit]})
            errors.append(float((net[:3](x) - before).square().mean()))
        assert errors[0] <= errors[1] * (1 + 1e-9) <= errors[2] * (1 + 1e-9)
