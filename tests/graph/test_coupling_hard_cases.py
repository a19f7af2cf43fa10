"""Constructions that other tools cut wrongly: cut right, or kept with the reason."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from cut_by_hand import assert_same, stirred
from torch import nn

from prunekit.graph import captured, groups, prune_groups

IMAGE = (torch.randn(4, 3, 6, 6, dtype=torch.float64),)
WORDS = (torch.randn(2, 4, 6, dtype=torch.float64),)


def _checked(make, inputs, removed, sizes, **options) -> None:
    model = stirred(make(*sizes[0]))
    plan = groups(model, inputs, **options)
    assert_same(model, make(*sizes[1]), plan, removed, inputs)


class Rolled(nn.Module):
    def __init__(self, width, shift=2):
        super().__init__()
        self.a = nn.Linear(6, width)
        self.b = nn.Linear(width, 3)
        self.shift = shift

    def forward(self, x):
        return self.b(torch.roll(self.a(x), self.shift, -1))


def test_a_roll():
    # of the last two, which come first, one goes
    model = stirred(Rolled(6))
    plan = groups(model, WORDS)
    assert_same(model, Rolled(4, shift=1), plan, {"a": [1, 5]}, WORDS)


class Stacked(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Linear(6, width)
        self.b = nn.Linear(6, width)
        self.c = nn.Linear(2 * width, 3)

    def forward(self, x):
        return self.c(torch.stack([self.a(x), self.b(x)], -1).flatten(-2))


def test_a_stack_before_a_flatten():
    _checked(Stacked, WORDS, {"a": [0, 3]}, ((5,), (3,)))


class ChannelsLast(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3)
        self.b = nn.Linear(16 * width, 3)

    def forward(self, x):
        return self.b(self.a(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1))


def test_a_flatten_of_channels_last():
    _checked(ChannelsLast, IMAGE, {"a": [1, 2]}, ((5,), (3,)))


class Edged(nn.Module):
    def __init__(self, width, edges):
        super().__init__()
        rank = int(edges[-2])
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.a, self.b = conv(2, width, 2), conv(width, 3, 2)
        self.edges, self.pads = getattr(torch.ops.aten, edges), [1] * (2 * rank)

    def forward(self, x):
        return self.b(self.edges(self.a(x), self.pads))


@pytest.mark.parametrize(
    "edges", [f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)]
)
def test_channels_behind_edges_that_are_filled_from_the_inside(edges):
    x = (torch.randn(2, 2, *[4] * int(edges[-2]), dtype=torch.float64),)
    _checked(Edged, x, {"a": [0, 3]}, ((5, edges), (3, edges)))


class PaddedShortcut(nn.Module):
    def __init__(self, a, pads):
        super().__init__()
        self.a = nn.Conv2d(3, a, 1)
        self.b = nn.Conv2d(a, a + sum(pads), 1)
        self.c = nn.Linear(a + sum(pads), 3)
        self.pads = pads

    def forward(self, x):
        x = self.a(x)
        x = self.b(torch.tanh(x)) + F.pad(x, (0, 0, 0, 0, *self.pads))
        return self.c(x.sum((2, 3)))


def test_a_shortcut_padded_with_zeros():
    x = IMAGE
    plan = groups(PaddedShortcut(4, (1, 2)), x, residual=True)
    stream = plan.group("a")
    assert stream.units == 4
    assert {member.tensor: member.indices[1] for member in stream.members}["b.weight"] in {(1,), (2,)}
    _checked(PaddedShortcut, x, {"a": [1, 3]}, ((4, (1, 2)), (2, (1, 2))), residual=True)


class PaddedSum(nn.Module):
    """Channels summed over, behind edges of one number that others are added to."""

    def __init__(self, value):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 7, 1)
        self.c = nn.Linear(6, 3)
        self.value = value

    def forward(self, x):
        y = self.b(x) + F.pad(self.a(x), (0, 0, 0, 0, 1, 2), value=self.value)
        return self.c(y.sum((1, 2)))


def test_only_edges_of_zeros_add_nothing_to_a_sum():
    plan = groups(PaddedSum(0.0).double(), IMAGE)
    assert {group.name: group.units for group in plan.prunable} == {"a": 4, "b": 3}
    plan = groups(PaddedSum(0.5).double(), IMAGE)
    assert re.fullmatch(
        r"is taken over at 'sum' \(test_coupling_hard_cases\.py:\d+\)", plan.group("b").frozen
    )


class Shuffled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Conv2d(3, 4 * width, 3)
        self.b = nn.Conv2d(width, 2, 3)
        self.down = nn.PixelUnshuffle(2)
        self.c = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.c(self.down(self.b(F.pixel_shuffle(self.a(x), 2))))


def test_pixel_shuffle_in_blocks_of_four():
    _checked(Shuffled, IMAGE, {"a": [0, 2]}, ((5,), (3,)))


class Repeated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3)
        self.b = nn.Conv2d(2 * width, 2, 1)
        self.c = nn.Conv2d(2 * width, 2, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(x.repeat(1, 2, 1, 1)) + self.c(x.repeat_interleave(2, 1))


def test_channels_repeated():
    _checked(Repeated, IMAGE, {"a": [1]}, ((4,), (3,)))


class SplitBySizes(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.up = nn.Linear(6, a + b)
        self.a = nn.Linear(a, 3)
        self.b = nn.Linear(b, 3)
        self.sizes = [a, b]

    def forward(self, x):
        a, b = self.up(x).split(self.sizes, -1)
        return self.a(a) + self.b(b)


def test_a_split_with_sizes_written_down():
    _checked(SplitBySizes, WORDS, {"up": [0, 4, 5]}, ((4, 5), (3, 3)))


class Buffers(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Linear(6, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.matrix = nn.Parameter(torch.ones(width, 3))
        self.register_buffer("shift", torch.ones(width))

    def forward(self, x):
        return (self.a(x) * self.scale + self.shift) @ self.matrix


def test_buffers_and_raw_parameters():
    plan = groups(Buffers(5), WORDS)
    roles = {(member.tensor, member.dim): member.role for member in plan.group("a").members}
    assert roles[("matrix", 0)] == "consumer"
    assert roles[("shift", 0)] == "along"
    _checked(Buffers, WORDS, {"a": [0, 3]}, ((5,), (3,)))


class TokenMixing(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.a = nn.Linear(4, inside)
        self.b = nn.Linear(inside, 4)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        x = x + self.b(F.gelu(self.a(x.transpose(1, 2)))).transpose(1, 2)
        return self.out(x)


def test_token_mixing_keeps_its_tokens():
    plan = groups(TokenMixing(5), WORDS, residual=True)
    assert [group.name for group in plan.prunable] == ["a"]
    assert "b" in plan.frozen
    _checked(TokenMixing, WORDS, {"a": [1]}, ((5,), (4,)))


class WholeNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3)
        self.norm = nn.LayerNorm((width, 4, 4))
        self.b = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def test_a_layer_norm_over_channels_says_so():
    group = groups(WholeNorm(4), IMAGE).group("a")
    assert group.frozen is None
    assert group.normalised == ("norm",)
    assert {(member.tensor, member.dim) for member in group.members} >= {("norm.weight", 0), ("norm.bias", 0)}


def test_group_norm_goes_in_whole_groups_or_offsets():
    many = groups(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1)), IMAGE).group("0")
    assert many.units == 4
    assert many.normalised == ()
    assert many.members[0].indices[1] == (2, 3)
    few = groups(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)), IMAGE).group("0")
    assert few.units == 4
    assert few.normalised == ("1",)
    assert few.members[0].indices[1] == (1, 5)


def test_groups_of_groups_go_whole_where_more_of_these_are_left():
    """8 groups of 4, then 16 of 2, then 4 of 8: four runs of 8 go exactly; two pairs of offsets would not."""
    layers = (
        nn.Conv2d(3, 32, 1),
        nn.GroupNorm(8, 32),
        nn.Conv2d(32, 32, 1, groups=16),
        nn.GroupNorm(4, 32),
        nn.Conv2d(32, 2, 1),
    )
    group = groups(nn.Sequential(*layers), IMAGE).group("0")
    assert group.units == 4
    assert group.normalised == ()
    assert group.members[0].indices[1] == tuple(range(8, 16))


class Auxiliary(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3)
        self.aux = nn.Linear(width, 2)
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        x = self.a(x).mean((2, 3))
        return self.out(x) + self.aux(x) if self.training else self.out(x)


def test_auxiliary_heads_in_training():
    _checked(Auxiliary, IMAGE, {"a": [0]}, ((4,), (3,)))


class Tied(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids)))


def test_tied_embeddings_are_one_tensor():
    plan = groups(Tied(6), (torch.randint(0, 7, (2, 4)),))
    widths = plan.prunable
    assert [group.units for group in widths] == [6]
    assert {member.tensor for member in widths[0].members} == {"embedding.weight", "norm.weight"}


def test_parametrized_weights_are_left():
    first = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = groups(model, (torch.randn(2, 6),))
    assert [group.name for group in plan.prunable] == ["2"]
    assert any("parametrization" in reason for reason in plan.frozen.values())


class Permuted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 5)
        self.b = nn.Linear(5, 3)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 4]))

    def forward(self, x):
        return self.b(self.a(x)[..., self.order])


def test_channels_picked_by_a_tensor_stay():
    plan = groups(Permuted(), (torch.randn(2, 6),))
    assert plan.prunable == ()
    assert "index" in plan.frozen["a"]


class InPlace(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a = nn.Linear(6, a + b)
        self.b = nn.Linear(6, a)
        self.c = nn.Linear(a + b, 3)
        self.cut = a

    def forward(self, x):
        y = self.a(x)
        y[..., : self.cut] += self.b(x)
        return self.c(y)


def test_what_is_written_into_a_part_goes_with_it():
    plan = groups(InPlace(3, 2), WORDS)
    writing = next(group for group in plan.groups if any(m.tensor == "b.weight" for m in group.members))
    assert {m.tensor: m.indices[0] for m in writing.members if m.dim == 0}["a.weight"] == (0,)
    _checked(InPlace, WORDS, {writing.name: [1]}, ((3, 2), (2, 2)))


class SumOfSigmoids(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 5)

    def forward(self, x):
        y = self.a(x)
        y.sigmoid_()
        return y.sum(-1)


def test_what_is_made_other_than_zero_in_place_is_seen():
    assert "is taken over" in groups(SumOfSigmoids(), WORDS).frozen["a"]


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 5)

    def forward(self, x):
        if x.sum() > 0:
            return self.a(x)
        return x


def test_a_branch_on_data_names_its_line():
    from prunekit.errors import ModelError

    with pytest.raises(ModelError, match=r"cannot be exported.*if x\.sum\(\) > 0"):
        captured(Branching(), (torch.randn(2, 6),))


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    plan = groups(model, (torch.randn(4, 6),))
    assert [module.training for module in model.modules()] == flags
    assert not model[0].weight.requires_grad
    assert plan.group("0").frozen is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_ignored_parts_keep_their_sizes():
    from prunekit.errors import InputError

    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    plan = groups(model, (torch.randn(4, 6),), ignore=["0"])
    assert [group.name for group in plan.prunable] == ["1"]
    assert "ignore" in plan.frozen["0"]
    with pytest.raises(InputError, match="'layer9' matches no module"):
        groups(model, (torch.randn(4, 6),), ignore=["layer9"])


@pytest.mark.parametrize("spread", ["product", "sum", "expand", "repeat", "matrix"])
def test_one_unit_that_is_spread_over_others_stays(spread):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)
            self.a.weight.data[2] = 0  # so that it would go first

        def forward(self, x):
            h = self.a(x)
            gate = h[:, 2:3]
            if spread == "product":
                return self.b(h * gate)
            if spread == "sum":
                return self.b(h + gate)
            if spread == "matrix":
                return self.b(gate.unsqueeze(1) @ h.unsqueeze(1)).squeeze(1)
            wide = gate.expand(-1, 12) if spread == "expand" else gate.repeat(1, 12)
            return self.b(h * wide)

    model, inputs = Gated(), torch.randn(4, 6)
    result = prune_groups(model, inputs, 0.5)
    stays = result.axes["a.weight"][0]
    assert stays[2]
    assert int(stays.sum()) == 7
