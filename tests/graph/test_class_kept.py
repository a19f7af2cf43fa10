"""Networks that keep their class: temperatures are made up for, and what stands in the way stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.graph import prune_groups, shrink, shrinking, traced, unit_masks
from prunekit.graph.proof import proven
from prunekit.saving import load_pretrained, save_pretrained

FIRST = ("fused", "separate", "rotary", "normed")
SCORES = ("sdpa", "root", "size", "power", "twice", "tensor", "fixed", "undone")


class Attention(nn.Module):
    """Attention in styles that people write: how queries are made, and how scores are scaled."""

    def __init__(self, made: str, scores: str, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.made, self.scores = made, scores
        self.h, self.d = heads, width // heads
        self.enter = nn.Linear(6, width)
        if made == "fused":
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        if made == "normed":
            self.q_norm = nn.Parameter(torch.linspace(0.5, 2, heads).view(heads, 1, 1))
        self.leave, self.out = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, _ = x.shape
        if self.made == "fused":
            q, k, v = self.qkv(x).reshape(b, n, 3, self.h, self.d).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                layer(x).view(b, n, self.h, self.d).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
        if self.made == "rotary":
            angles = torch.linspace(0, 1, n, dtype=x.dtype)[:, None]
            q, k = (each * angles.cos() - each.flip(-2) * angles.sin() for each in (q, k))
        if self.made == "normed":
            q = self.q_norm * (q / (1 + q.norm(dim=-1, keepdim=True)))
        y = self._attended(q, k, v)
        return self.out(x + self.leave(y.transpose(1, 2).flatten(2)))

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        turned = k.transpose(-1, -2)
        if self.scores == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        if self.scores == "undone":
            return F.scaled_dot_product_attention(q * q.shape[-1] ** 0.5, k, v)
        if self.scores == "twice":
            root = q.shape[-1] ** -0.25
            return ((q * root) @ (turned * root)).softmax(-1) @ v
        found = {
            "root": lambda: q @ turned / math.sqrt(q.shape[-1]),
            "size": lambda: (q * q.size(-1) ** -0.5) @ turned,
            "power": lambda: torch.einsum("bhid,bhjd->bhij", q, k) * q.size(-1) ** -0.5,
            "tensor": lambda: q @ turned / torch.full([], v.size(-1) ** 0.5, dtype=q.dtype),
            "fixed": lambda: q @ turned * 0.3,
        }[self.scores]()
        return found.softmax(-1) @ v


def stream(length: int = 5) -> Tensor:
    return torch.randn(2, length, 6, generator=torch.Generator().manual_seed(0)).to(torch.get_default_dtype())


def half(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Flags that take the first half of what can go, but for one unit in each."""
    return {
        group.name: torch.arange(group.units) >= group.units // 2
        for group in traced(model, inputs).plan.prunable
    }


def by_hand(model: nn.Module, kept: dict[str, Tensor], inputs: Tensor) -> nn.Module:
    """The network with zeros in the places of the units."""
    masked = copy.deepcopy(model)
    unit_masks(masked, traced(masked, inputs).plan, kept).apply(masked)
    return masked


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("made", FIRST[:3])
def test_attention_keeps_its_class(made: str, scores: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, x = Attention(made, scores).eval(), stream()
    kept = half(model, x)
    wanted = by_hand(model, kept, x)(x)
    kinds = {traced(model, x).plan.group(name).kind for name in kept}
    assert kinds == {"heads", "head width"}
    result = shrink(model, x, kept)
    assert result.form == "modules", result.reason
    assert result.model is model
    assert not result.stayed
    assert (model.h, model.d) == (2, 4)
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-7)
    assert model(stream(9)[:1]).shape == (1, 9, 3)
    save_pretrained(model, tmp_path / "net")
    fresh = load_pretrained(tmp_path / "net", Attention(made, scores)).eval()
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("scores", SCORES)
def test_a_temperature_is_seen_before_the_proof(scores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One proof is enough, unless what the code multiplies by is undone elsewhere."""
    given: list[bool] = []

    def counted(reference: Any, candidate: Any, cut: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(bool(cut.factors))
        return proven(reference, candidate, cut, *args, **kwargs)

    monkeypatch.setattr(shrinking, "proven", counted)
    torch.manual_seed(0)
    prune_groups(Attention("separate", scores), stream(), 0.5)
    assert given == {"fixed": [False], "undone": [True, False]}.get(scores, [True])


def test_the_factor_is_the_root_of_the_widths() -> None:
    """Queries alone are multiplied, by the root of the new width over the old one."""
    torch.manual_seed(0)
    model, x = Attention("separate", "sdpa").double().eval(), stream().double()
    before = copy.deepcopy(model)
    plan = traced(model, x).plan
    kept = {name: each for name, each in half(model, x).items() if plan.group(name).kind == "head width"}
    assert len(kept) == 2
    shrink(model, x, kept)
    rows = torch.arange(24) % 8 >= 4
    torch.testing.assert_close(model.q.weight, before.q.weight[rows] * math.sqrt(4 / 8), rtol=1e-14, atol=0)
    torch.testing.assert_close(model.q.bias, before.q.bias[rows] * math.sqrt(4 / 8), rtol=1e-14, atol=0)
    assert torch.equal(model.k.weight, before.k.weight[rows])
    assert torch.equal(model.v.weight, before.v.weight[rows])


@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(
    st.sampled_from(FIRST),
    st.sampled_from(SCORES),
    st.sampled_from([(12, 2), (24, 3), (16, 4)]),
    st.floats(0.2, 0.8),
)
def test_any_style_of_attention_is_proven(
    made: str, scores: str, sizes: tuple[int, int], share: float
) -> None:
    torch.manual_seed(0)
    model, x = Attention(made, scores, *sizes).eval(), stream()
    result = prune_groups(model, x, share)
    assert result.deviation.accepted
    assert result.form == "modules", result.reason
    assert result.model(stream(3)).shape == (2, 3, 3)


class Written(nn.Module):
    """An MLP that can lose units, and a layer whose width stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 12)
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu()).relu()
        return self.last(self.conv(y.view(-1, 3, 2, 2)).flatten(1))


class Divided(nn.Module):
    """Heads whose width is the stream's by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.enter, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.last = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, n, c))
        return self.last(x + self.down(self.up(x).relu()))


class Torch(nn.Module):
    """PyTorch's own attention beside a layer that can lose units."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.last = nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(self.up(x).relu())


STAYS: dict[str, tuple[Callable[[], nn.Module], Tensor, set[str], str]] = {
    "a view with numbers": (Written, torch.randn(2, 6), {"second"}, "view(-1, 3, 2, 2)"),
    "heads by division": (Divided, torch.randn(2, 5, 6), {"qkv", "qkv (head width)"}, "reshape(b, n, "),
    "PyTorch's attention": (Torch, torch.randn(2, 5, 6), {"attention", "attention.out_proj"}, "attention"),
}


@pytest.mark.parametrize("case", list(STAYS))
def test_what_the_code_cannot_do_without_stays_and_is_named(case: str) -> None:
    make, inputs, names, line = STAYS[case]
    inputs = inputs.to(torch.get_default_dtype())
    torch.manual_seed(0)
    model = make().eval()
    outputs = model(inputs)
    whole = copy.deepcopy(model)
    result = prune_groups(model, inputs, 0.5)
    assert result.form == "modules", result.reason
    assert result.model is model
    assert result.lost
    assert {name.split(" ")[0] for name in result.stayed} <= {name.split(" ")[0] for name in names}
    assert result.stayed
    assert all(line in reason for reason in result.stayed.values()), result.stayed
    assert all(name in str(result) for name in result.stayed)
    assert result.to_dict()["stayed"] == dict(result.stayed)
    assert model(inputs).shape == outputs.shape

    graph = prune_groups(whole, inputs, 0.5, form="graph")
    assert graph.form == "graph"
    assert not graph.stayed
    assert graph.parameters_after < result.parameters_after


def test_units_that_were_chosen_and_stay_have_no_effect() -> None:
    torch.manual_seed(0)
    model, x = Divided().eval(), stream()
    kept = half(model, x)
    wanted = by_hand(model, kept, x)(x)
    result = shrink(model, x, kept)
    assert result.form == "modules", result.reason
    assert set(result.stayed) == set(kept) - {"up"}
    assert [(group.name, group.after) for group in result.groups] == [("up", 16)]
    torch.testing.assert_close(model(x), wanted)
    result.masks.parameters(model)  # of the smaller network
    assert not result.masks["out.weight"].all()
    assert torch.equal(model.out.weight == 0, ~result.masks["out.weight"])
    assert result.model(stream(9)[:1]).shape == (1, 9, 3)


class Chunked(nn.Module):
    """As in YOLOv8: halves of which one is a residual stream, behind a layer that can lose units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1)
        self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.a(self.first(x).relu()).chunk(2, 1))
        y.append(y[-1] + self.b(y[-1]))
        return self.c(torch.cat(y, 1))


class Halved(nn.Module):
    """As in ShuffleNet: one half goes by, the other through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.a, self.o = nn.Conv2d(3, 20, 1), nn.Conv2d(10, 10, 1), nn.Conv2d(20, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.i(x).chunk(2, 1)
        return self.o(torch.cat([a, self.a(b)], 1))


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 4, generator=generator).to(torch.get_default_dtype())


def test_a_half_stays_where_the_other_must() -> None:
    torch.manual_seed(0)
    model, x = Chunked().eval(), images()
    result = prune_groups(model, x, 0.5)
    assert result.form == "modules", result.reason
    assert [(group.name, group.before, group.after) for group in result.lost] == [("first", 12, 6)]
    why = "the pieces that 'chunk' (test_class_kept.py:268) cuts must lose equally many units"
    assert result.stayed == {"a (filters)": why}
    assert prune_groups(Chunked().eval(), x, 0.5, form="graph").form == "graph"


@given(
    st.lists(st.booleans(), min_size=10, max_size=10).filter(any),
    st.lists(st.booleans(), min_size=10, max_size=10).filter(any),
)
@settings(max_examples=15, deadline=None, phases=[Phase.generate])
def test_halves_lose_equally_many_units_the_least_ones(first: list[bool], second: list[bool]) -> None:
    torch.manual_seed(0)
    model, x = Halved().eval(), images()
    flags = torch.tensor(first + second)
    norms = model.i.weight.detach().abs().sum((1, 2, 3))
    wanted = by_hand(model, {"i": flags}, x)(x)
    more = max(sum(first), sum(second))
    result = shrink(model, x, {"i": flags})
    if more == 10:  # one half is whole, so that the other would have to be
        assert result.form == ("graph" if sum(first) != sum(second) else "modules")
        return
    assert result.form == "modules", result.reason
    assert [group.after for group in result.groups] == [2 * more]
    assert bool(result.stayed) == (sum(first) != sum(second))
    torch.testing.assert_close(model(x), wanted)
    stays = result.axes["i.weight"][0]
    for half, own in ((slice(0, 10), first), (slice(10, 20), second)):
        gone = ~torch.tensor(own)
        back = stays[half] & gone
        assert int(back.sum()) == more - sum(own)
        if bool(back.any()):
            assert not bool((norms[half][gone & ~back] > norms[half][back].min()).any())
