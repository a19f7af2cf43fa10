"""A residual stream is a sum in which a value meets what a layer computed from it, however it comes there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.graph import groups

WIDTH = 32


class Block(nn.Module):
    """One block between two layers, whose sum is given."""

    def __init__(self, total):
        super().__init__()
        self.total = total
        self.into, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        x = self.into(x)
        return self.out(self.total(self, x, self.down(F.gelu(self.up(x)))))


STREAMS = {
    "plain": lambda self, x, y: x + y,
    "scaled": lambda self, x, y: x * self.gain + y,
    "both scaled": lambda self, x, y: 0.5 * x + y / 2,
    "cast": lambda self, x, y: (x.double() + y).to(self.gain.dtype),
    "dropped out": lambda self, x, y: F.dropout(x, 0.1, self.training) + y,
    "moved": lambda self, x, y: (x.transpose(1, 2) + y.transpose(1, 2)).transpose(1, 2),
    "interpolated": lambda self, x, y: torch.lerp(x, y, 0.5),
    "addcmul": lambda self, x, y: torch.addcmul(x, y, self.gain),
    "a difference": lambda self, x, y: x - y,
    "the other difference": lambda self, x, y: y - x,
    "stacked": lambda self, x, y: torch.stack([x, y]).sum(0),
    "stacked behind": lambda self, x, y: torch.stack([x, y], -1).mean([-1]),
}
NONE = {
    "a part of a function": lambda self, x, y: y + 0.04 * y**3,
    "a product": lambda self, x, y: x * y,
    "two branches": lambda self, x, y: F.relu(x) + F.silu(x),
    "another value": lambda self, x, y: y + self.gain,
    "summed along itself": lambda self, x, y: torch.stack([x, y]).sum(-1, keepdim=True)[0] * y,
}


def wide(total):
    plan = groups(Block(total).eval(), torch.randn(2, 5, 6))
    return [group for group in plan.groups if group.units == WIDTH]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_stays_unless_it_is_asked_for(name):
    (group,) = wide(STREAMS[name])
    assert group.kind == "residual stream"
    assert "residual=True" in group.frozen


@pytest.mark.parametrize("name", NONE)
def test_other_sums_are_none(name):
    assert all(group.kind != "residual stream" for group in wide(NONE[name]))
