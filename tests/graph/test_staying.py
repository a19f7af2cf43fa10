"""Which groups stay so that the class holds: never more than must, found by trying every choice."""

from __future__ import annotations

import copy
from itertools import chain, combinations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.graph import groups, prune_groups, shrink, smaller, traced, unit_masks


class Fixed(nn.Module):
    """Attention whose number of heads, or their width, stands in the code, or whose product does."""

    def __init__(self, fixed: str) -> None:
        super().__init__()
        self.fixed, self.h, self.d = fixed, 4, 8
        self.enter, self.qkv, self.leave = nn.Linear(6, 16), nn.Linear(16, 96), nn.Linear(32, 16)
        self.up, self.out = nn.Linear(16, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, _ = x.shape
        y = self.qkv(x)
        if self.fixed == "heads":
            q, k, v = (each.view(b, n, 4, self.d) for each in y.split(4 * self.d, -1))
        elif self.fixed == "width":
            q, k, v = (each.view(b, n, self.h, 8) for each in y.split(self.h * 8, -1))
        else:
            q, k, v = (each.view(b, n, self.h, self.d) for each in y.split(self.h * self.d, -1))
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        y = ((q @ k.transpose(-1, -2)) * 0.3).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(b, n, 32) if self.fixed == "both" else y.transpose(1, 2).flatten(2)
        return self.out(self.up(x + self.leave(y)).relu())


class Shared(nn.Module):
    """Queries that something else reads, too, so that only the keys can be multiplied."""

    def __init__(self, gate: bool = True) -> None:
        super().__init__()
        self.h, self.d, self.gate = 3, 8, gate
        self.enter, self.out = nn.Linear(6, 24), nn.Linear(24, 3)
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).tanh()
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.h, self.d).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v) * (q.sigmoid() if self.gate else 1.0)
        return self.out(y.transpose(1, 2).flatten(2))


class Relative(nn.Module):
    """Relative positions beside the keys, made with the layer of the keys, behind a shift with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.d = 3, 8
        self.enter, self.out = nn.Linear(6, 24), nn.Linear(24, 3)
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.places = nn.Parameter(torch.randn(1, 9, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).tanh()
        q, k, v, p = (
            layer(each).view(len(each), each.shape[1], self.h, self.d).transpose(1, 2)
            for layer, each in ((self.q, x), (self.k, x), (self.v, x), (self.k, self.places))
        )
        root, n = self.d**0.5, x.shape[1]
        shifted = q @ p.transpose(-1, -2)
        shifted = torch.cat([torch.zeros_like(shifted[..., :1]), shifted], -1).flatten(2)[..., : n * n]
        scores = q @ (k.transpose(-1, -2) / root) + shifted.view(len(x), self.h, n, n) / root
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Joined(nn.Module):
    """As in set transformers: heads by splits, queries that are added, one temperature for all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.h = 24, 3
        self.enter, self.out = nn.Linear(6, 24), nn.Linear(24, 3)
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).tanh()
        q, k, v = (
            torch.cat(layer(x).split(self.width // self.h, 2), 0) for layer in (self.q, self.k, self.v)
        )
        scores = q.bmm(k.transpose(1, 2)) / self.width**0.5
        return self.out(torch.cat((q + scores.softmax(2).bmm(v)).split(len(x), 0), 2))


class Looked(nn.Module):
    """A layer that looks something up by its number, beside a width that it slices by."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.width, self.found = 1, 8, {0: 3.0, 1: 2.0}
        self.both, self.out = nn.Linear(6, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.both(x) * self.found[self.number]
        return self.out(y[..., : self.width].tanh() * y[..., self.width :].sigmoid())


class Places(nn.Module):
    """Features that lie where a convolution of one place each does not mix them."""

    def __init__(self, step: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10 if step == 1 else 5, 3)
        self.mix = nn.Conv2d(4, 4, (3, 1), padding=(1, 0), stride=(1, step), groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.mix(self.a(x)))


def given_inputs(*sides: int) -> Tensor:
    return torch.randn(*sides, generator=torch.Generator().manual_seed(0)).to(torch.get_default_dtype())


def halves(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Flags without every other unit of what can go."""
    return {each.name: torch.arange(each.units) % 2 == 1 for each in groups(model, x).prunable}


@pytest.mark.parametrize("fixed", ["heads", "width", "both", "none"])
def test_no_other_choice_keeps_the_class_with_fewer_parameters(fixed: str) -> None:
    torch.manual_seed(0)
    model, x = Fixed(fixed).eval(), given_inputs(2, 5, 6)
    flags = halves(model, x)
    assert len(flags) == 3  # heads, their widths, and the MLP
    found = shrink(copy.deepcopy(model), x, flags)
    assert found.form == "modules"
    left = []
    for names in chain.from_iterable(combinations(flags, count) for count in range(1, len(flags) + 1)):
        tried = shrink(copy.deepcopy(model), x, {name: flags[name] for name in names})
        if tried.form == "modules" and not tried.stayed:
            left.append(tried.parameters_after)
    assert found.parameters_after == min(left)
    plan = groups(model, x)
    kinds = {plan.group(name).kind for name in found.stayed}
    allowed = {"heads": {"heads"}, "width": {"head width"}, "both": {"heads", "head width"}, "none": set()}
    assert kinds == allowed[fixed]


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3))
def test_widths_with_one_attribute_lose_equally_many(scores: int, values: int, heads: int) -> None:
    """Of what would lose more the units with the largest norms stay, and what is counted is what is left."""
    torch.manual_seed(0)
    model, x = Shared(gate=False).double().eval(), given_inputs(2, 5, 6).double()
    found = traced(model, x)
    names = {(each.kind, each.units): each.name for each in found.plan.prunable}
    widths = [each.name for each in found.plan.prunable if each.kind == "head width"]
    assert len(widths) == 2
    flags = {widths[0]: torch.arange(8) < scores, widths[1]: torch.arange(8) < values}
    flags[names["heads", 3]] = torch.arange(3) < heads
    count = sum(each.numel() for each in smaller(model, found, flags, x).parameters())
    result = shrink(model, x, flags)
    assert result.form == "modules", result.reason
    assert (model.h, model.d) == (heads, max(scores, values))
    assert set(result.stayed) == ({widths[scores > values]} if scores != values else set())
    assert count == result.parameters_after


def test_heads_that_are_split_and_joined_keep_their_class() -> None:
    torch.manual_seed(0)
    model, x = Joined().double().eval(), given_inputs(2, 5, 6).double()
    before = copy.deepcopy(model)
    result = prune_groups(model, x, 0.5)
    assert result.form == "modules", result.reason
    assert (model.width, model.h) == (12, 3)
    rows, columns = result.axes["k.weight"][0], result.axes["k.weight"][1]
    whole = before.k.weight[rows][:, columns]  # the keys make up for the width in the temperature
    torch.testing.assert_close(model.k.weight, whole * 0.5**0.5, rtol=1e-14, atol=0)
    assert model(given_inputs(3, 7, 6).double()).shape == (3, 7, 3)


@pytest.mark.parametrize("make", [Shared, Relative])
def test_a_temperature_is_made_up_for_where_nothing_else_is_multiplied(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), given_inputs(2, 5, 6).double()
    flags = halves(model, x)
    assert {each.kind for each in groups(model, x).prunable} >= {"heads", "head width"}
    masked = copy.deepcopy(model)
    unit_masks(masked, groups(masked, x), flags).apply(masked)
    wanted = masked(x)
    before = copy.deepcopy(model)
    result = shrink(model, x, flags)
    assert result.form == "modules", result.reason
    assert not result.stayed
    torch.testing.assert_close(model(x), wanted, rtol=1e-12, atol=1e-13)
    rows, columns = result.axes["q.weight"][0], result.axes["q.weight"][1]  # the queries are as they were
    assert torch.equal(model.q.weight, before.q.weight[rows][:, columns])


def test_numbers_that_something_is_looked_up_by_do_not_keep_others_from_being_found() -> None:
    torch.manual_seed(0)
    model, x = Looked().eval(), given_inputs(4, 6)
    result = prune_groups(model, x, 0.5)
    assert result.form == "modules", result.reason
    assert not result.stayed
    assert (model.number, model.width) == (1, 4)
    assert type(model.number) is int
    assert model(given_inputs(7, 6)).shape == (7, 3)


def test_places_that_are_not_mixed_lose_units() -> None:
    torch.manual_seed(0)
    model, x = Places().eval(), given_inputs(2, 4, 5, 6)
    flags = halves(model, x)
    assert flags["a"].sum() == 5
    masked = copy.deepcopy(model)
    masked.b.weight.data[:, ::2] = 0
    wanted = masked(x)
    result = shrink(model, x, {"a": flags["a"]})
    assert result.form == "modules"
    assert model.a.weight.shape == (5, 6)
    torch.testing.assert_close(model(x), wanted)
    assert "is convolved over" in groups(Places(step=2).eval(), x).frozen["a"]


@pytest.mark.parametrize("name", ["multiply", "divide", "subtract"])
def test_other_names_of_arithmetic_work_entry_by_entry(name: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(getattr(torch, name)(self.a(x), 1 + self.b(x).exp()))

    torch.manual_seed(0)
    result = prune_groups(Two().eval(), given_inputs(4, 6), 0.5)
    assert result.form == "modules"
    assert [(each.before, each.after) for each in result.lost] == [(8, 4)]


class Torch(nn.Module):
    """A stream between PyTorch's own layers of attention, of which one may read something else."""

    def __init__(self, width: int = 16, heads: int = 4, other: int | None = None, hidden: int = 24) -> None:
        super().__init__()
        self.enter, self.other = nn.Linear(6, width), nn.Linear(6, other or width)
        self.layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=True)
        self.cross = nn.MultiheadAttention(width, heads, kdim=other, vdim=other, batch_first=True)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, other = self.layer(self.enter(x)), self.other(x).tanh()
        return self.out(y + self.cross(y, other, other)[0])


@pytest.mark.parametrize("other", [None, 10])
def test_pytorchs_attention_goes_with_the_stream(other: int | None) -> None:
    """What is left is PyTorch's own network of that width, and computes what that one does."""
    torch.manual_seed(0)
    model, x = Torch(other=other).eval(), given_inputs(2, 5, 6)
    result = prune_groups(model, x, 0.5, residual=True)
    assert result.form == "modules", result.reason
    assert model.out.weight.shape == (3, 8)
    for each in (model.layer.self_attn, model.cross):
        assert each.num_heads * each.head_dim == each.embed_dim == 8
    fresh = Torch(8, model.cross.num_heads, model.cross.kdim if other else None, 12).eval()
    assert model.other.weight.shape == (8 if other is None else 5, 6)
    fresh.load_state_dict(model.state_dict())
    for name in ("embed_dim", "num_heads", "head_dim", "kdim", "vdim"):
        assert getattr(model.cross, name) == getattr(fresh.cross, name), name
    with torch.no_grad():
        torch.testing.assert_close(model(given_inputs(3, 7, 6)), fresh(given_inputs(3, 7, 6)))


def test_pytorchs_attention_stays_where_the_stream_does() -> None:
    torch.manual_seed(0)
    model, x = Torch().eval(), given_inputs(2, 5, 6)
    result = prune_groups(model, x, 0.5)
    assert result.form == "modules", result.reason
    assert {group.name for group in result.lost} == {"layer.linear1"}
    assert result.stayed["layer.self_attn (heads)"].endswith(
        "in 'layer.self_attn' (test_staying.py:258): its heads must make up the width of what it is given"
    )
