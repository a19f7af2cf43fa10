"""Widths that are multiples, and what `prune_groups` refuses."""

import copy

import pytest
import torch
from torch import nn

from prunekit.errors import InputError, ModelError
from prunekit.graph import prune_groups


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


INPUTS = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).double()


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
