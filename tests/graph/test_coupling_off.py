"""Units that are off in networks that are no chains, and widths that are multiples."""

import copy

import pytest
import torch
from torch import nn

from prunekit.errors import InputError, ModelError
from prunekit.graph import groups, off_units, prune_groups, shrink_off


class Residual(nn.Module):
    def __init__(self, act=nn.ReLU, norm=True):
        super().__init__()
        self.into = nn.Conv2d(2, 4, 3, padding=1)
        self.up = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.down = nn.Conv2d(6, 4, 3, padding=1)
        self.act, self.fc = act(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.into(x)
        return self.fc((x + self.down(self.act(self.norm(self.up(x))))).mean((2, 3)))


def silence(model, unit):
    """Nothing feeds the unit."""
    with torch.no_grad():
        for tensor in (model.up.weight, model.up.bias, *model.norm.parameters()):
            tensor[unit] = 0


INPUTS = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).double()


def test_units_that_nothing_feeds_and_that_nothing_reads():
    model = Residual().eval()
    model.norm.running_mean.normal_()
    silence(model, 1)
    with torch.no_grad():
        model.down.weight[:, 4] = 0
    expected = copy.deepcopy(model)(INPUTS)
    plan = groups(model, INPUTS)
    assert off_units(model, plan)["up"].tolist() == [True, False, True, True, False, True]
    result = shrink_off(model, INPUTS)
    assert [(group.name, group.before, group.after) for group in result.groups] == [("up", 6, 4)]
    assert result.axes["down.weight"][1].tolist() == [True, False, True, True, False, True]
    torch.testing.assert_close(model(INPUTS), expected)


def test_a_unit_with_a_bias_alone_is_not_off():
    model = Residual()
    silence(model, 1)
    with torch.no_grad():
        model.norm.bias[1] = 0.1
    with pytest.raises(ModelError, match="no unit of this network is off"):
        shrink_off(model.eval(), INPUTS)


def test_a_constant_that_is_read_stays():
    """The sigmoid of zero is no zero."""
    model = Residual(nn.Sigmoid).eval()
    silence(model, 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="no unit of this network is off"):
        shrink_off(model, INPUTS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_whole_group_that_is_off_keeps_a_unit():
    model = Residual().eval()
    with torch.no_grad():
        model.down.weight.zero_()
    result = shrink_off(model, INPUTS)
    assert [(group.name, group.after) for group in result.groups] == [("up", 1)]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        return x + self.down(self.norm(self.up(x)))


def test_zeros_in_a_statistic_count_unless_it_is_told():
    model, inputs = Normed(), torch.randn(3, 4)
    silence(model, 2)
    with torch.no_grad():
        model.down.weight[:, 2] = 0
    plan = groups(model, inputs)
    assert off_units(model, plan) == {}
    assert off_units(model, plan, over_units=True)["up"].tolist() == [True, True, False, True, True, True]
    with pytest.raises(ModelError, match="is off"):
        shrink_off(model, inputs)
    assert shrink_off(model, inputs, over_units=True).parameters_after < 4 * 6 * 2 + 6 * 3 + 4


@pytest.mark.parametrize(("multiple", "left"), [(1, 3), (2, 4), (4, 4)])
def test_widths_are_multiples(multiple, left):
    result = prune_groups(Residual().eval(), INPUTS, 0.5, round_to=multiple)
    assert [(group.name, group.after) for group in result.groups] == [("up", left)]


def test_a_group_smaller_than_the_multiple_stays_whole():
    result = prune_groups(Residual().eval(), INPUTS, 0.9, round_to=8)
    assert result.groups == ()
    assert result.parameters_after == result.parameters_before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"round_to": 0}, "round_to must be at least 1, got 0"),
        ({"kinds": ["filter"]}, "no groups are of the kind 'filter'; kinds are: heads, head width"),
        ({"ignore": ["nothing"]}, "ignore: 'nothing' matches no module and no parameter"),
        ({"ignore": "up"}, "ignore must be a list"),
        ({"kinds": ["heads"]}, "no group of the kind heads can be pruned in this network, but filters can"),
        ({"ignore": ["*"]}, "nothing of this network can be pruned: .*ignore"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(settings, message):
    model = Residual().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((InputError, ModelError), match=message):
        prune_groups(model, INPUTS, 0.5, **settings)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_inputs_that_do_not_fit_are_refused_and_nothing_is_changed():
    model = Residual().eval()
    before = copy.deepcopy(model.state_dict())
    for inputs, message in (
        (torch.zeros(2, 3, 5, 5), r"expected input.* to have 2 channels, but got 3 .*, at line \d+ of"),
        ((INPUTS, INPUTS), "do not fit the network's forward: too many positional"),
        ({"y": INPUTS}, "do not fit the network's forward: missing a required argument: 'x'"),
        (7, "must be a tensor, a tuple or a dict of named arguments, not int"),
    ):
        with pytest.raises((InputError, ModelError), match=message):
            prune_groups(model, inputs, 0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
