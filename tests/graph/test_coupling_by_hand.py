"""Groups of small networks: the masked network against a smaller one that is built by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from cut_by_hand import assert_same, stirred
from torch import nn

from prunekit.graph import groups


def _checked(make, inputs, removed, sizes, **options) -> None:
    """`make(*sizes before)` without the units is `make(*sizes after)`."""
    before, after = sizes
    model = stirred(make(*before))
    plan = groups(model, inputs, **options)
    assert_same(model, make(*after), plan, removed, inputs)


class Plain(nn.Module):
    def __init__(self, a, b, c):
        super().__init__()
        self.conv = nn.Conv2d(3, a, 3)
        self.norm = nn.BatchNorm2d(a)
        self.second = nn.Conv2d(a, b, 3, bias=False)
        self.hidden = nn.Linear(b * 4, c)
        self.out = nn.Linear(c, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = torch.sigmoid(self.second(x)).flatten(1)
        return self.out(F.gelu(self.hidden(x)))


def test_a_plain_chain_with_a_flatten():
    removed = {"conv": [0, 3], "second": [1], "hidden": [2, 5, 6]}
    _checked(Plain, (torch.randn(4, 3, 10, 10),), removed, ((5, 4, 8), (3, 3, 5)))


class Residual(nn.Module):
    def __init__(self, width, inside):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.one = nn.Conv2d(width, inside, 3, padding=1)
        self.norm = nn.BatchNorm2d(inside)
        self.two = nn.Conv2d(inside, width, 3, padding=1)
        self.out = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.two(F.relu(self.norm(self.one(x)))))
        return self.out(x.mean((2, 3)))


def test_a_residual_sum_keeps_its_width_unless_asked():
    x = (torch.randn(4, 3, 5, 5),)
    plan = groups(Residual(6, 4), x)
    assert plan.group("stem").kind == "residual stream"
    assert "residual=True" in plan.frozen["stem"]
    assert [group.name for group in plan.prunable] == ["one"]
    _checked(Residual, x, {"stem": [1, 2], "one": [0]}, ((6, 4), (4, 3)), residual=True)


class Concat(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a = nn.Conv2d(3, a, 3)
        self.b = nn.Conv2d(3, b, 3)
        self.norm = nn.BatchNorm2d(a + b)
        self.out = nn.Linear((a + b) * 9, 4)

    def forward(self, x):
        return self.out(self.norm(torch.cat([self.a(x), self.b(x)], 1)).flatten(1))


def test_a_concatenation_before_a_flatten():
    _checked(Concat, (torch.randn(4, 3, 5, 5),), {"a": [1], "b": [0, 3]}, ((3, 4), (2, 2)))


class Depthwise(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.first = nn.Conv2d(3, a, 1)
        self.deep = nn.Conv2d(a, 2 * a, 3, groups=a)
        self.point = nn.Conv2d(2 * a, b, 1)
        self.out = nn.Linear(b, 4)

    def forward(self, x):
        return self.out(F.relu(self.point(F.relu(self.deep(self.first(x))))).sum((2, 3)))


def test_a_depthwise_multiplier_follows_its_input():
    _checked(Depthwise, (torch.randn(4, 3, 5, 5),), {"first": [1, 4], "point": [0]}, ((6, 5), (4, 4)))


class Grouped(nn.Module):
    def __init__(self, groups, a, b):
        super().__init__()
        self.first = nn.Conv2d(3, groups * a, 1)
        self.mid = nn.Conv2d(groups * a, groups * b, 3, groups=groups)
        self.out = nn.Linear(groups * b, 4)

    def forward(self, x):
        return self.out(F.relu(self.mid(self.first(x))).mean((2, 3)))


def test_groups_go_in_whole_where_there_are_many():
    _checked(Grouped, (torch.randn(4, 3, 5, 5),), {"first": [0, 3]}, ((4, 2, 3), (2, 2, 3)))


def test_the_same_offset_goes_from_every_group_where_there_are_few():
    _checked(Grouped, (torch.randn(4, 3, 5, 5),), {"first": [0, 3], "mid": [1]}, ((2, 4, 5), (2, 2, 4)))


class Shuffled(nn.Module):
    def __init__(self, each):
        super().__init__()
        self.first = nn.Conv2d(3, 2 * each, 1)
        self.out = nn.Conv2d(2 * each, 4, 1)
        self.each = each

    def forward(self, x):
        x = self.first(x)
        x = x.view(x.shape[0], 2, self.each, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.out(x.flip(1))


def test_a_channel_shuffle_and_a_flip():
    x = (torch.randn(4, 3, 5, 5),)
    plan = groups(Shuffled(4), x)
    assert [group.units for group in plan.prunable] == [4]
    name = plan.prunable[0].name
    _checked(Shuffled, x, {name: [1, 2]}, ((4,), (2,)))


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(6, 2 * width)
        self.down = nn.Linear(width, 3)

    def forward(self, x):
        a, b = self.up(x).chunk(2, -1)
        return self.down(a * torch.sigmoid(b)) + self.down(F.glu(self.up(x)))


def test_the_halves_of_a_gate_go_together():
    _checked(Gated, (torch.randn(4, 7, 6),), {"up": [0, 2]}, ((5,), (3,)))


class Excited(nn.Module):
    def __init__(self, width, inside):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.down = nn.Conv2d(width, inside, 1)
        self.up = nn.Conv2d(inside, width, 1)
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        x = self.conv(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.out((x * gate).mean((2, 3)))


def test_squeeze_and_excite():
    _checked(Excited, (torch.randn(4, 3, 5, 5),), {"conv": [1], "down": [0, 1]}, ((6, 4), (5, 2)))


class Attention(nn.Module):
    def __init__(self, heads, width, shared):
        super().__init__()
        self.q = nn.Linear(6, heads * width)
        self.k = nn.Linear(6, shared * width)
        self.v = nn.Linear(6, shared * width)
        self.o = nn.Linear(heads * width, 6)
        self.heads, self.width, self.shared = heads, width, shared

    def forward(self, x):
        B, T, _ = x.shape
        q = self.q(x).view(B, T, self.heads, self.width).transpose(1, 2)
        k, v = (layer(x).view(B, T, self.shared, self.width).transpose(1, 2) for layer in (self.k, self.v))
        times = self.heads // self.shared
        k, v = (
            each[:, :, None].expand(-1, -1, times, -1, -1).reshape(B, self.heads, T, self.width)
            for each in (k, v)
        )
        shares = torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1)
        return self.o((shares @ v).transpose(1, 2).reshape(B, T, -1))


def test_heads_and_head_widths_of_grouped_attention():
    x = (torch.randn(2, 5, 6),)
    plan = groups(Attention(6, 4, 3), x)
    kinds = {group.kind: group for group in plan.prunable}
    assert kinds["heads"].units == 3
    heads = {name.tensor: name.indices[1] for name in kinds["heads"].members}
    assert heads["q.weight"] == tuple(range(8, 16))
    assert heads["k.weight"] == tuple(range(4, 8))
    _checked(Attention, x, {kinds["heads"].name: [1]}, ((6, 4, 3), (4, 4, 2)))


class Fixed(nn.Module):
    """Sums over channels that are not zero, an operator without a rule, and the network's output."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 5)
        self.b = nn.Linear(4, 5)
        self.c = nn.Linear(4, 5)

    def forward(self, x):
        return torch.sigmoid(self.a(x)).sum(-1), torch.fft.rfft(self.b(x)).abs().sum(-1), self.c(x)


def test_what_is_not_sure_is_frozen_with_its_reason():
    plan = groups(Fixed(), (torch.randn(2, 4),))
    assert not plan.prunable
    assert "need not be zero" in plan.frozen["a"] or "is taken over" in plan.frozen["a"]
    assert "without a rule" in plan.frozen["b"]
    assert "fft" in plan.frozen["b"]
    assert "output" in plan.frozen["c"]
