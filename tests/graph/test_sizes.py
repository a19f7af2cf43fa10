"""Sizes that stand in attributes: found by what the code does with them, changed, put back, and restored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.graph import groups, prune_groups, size_attributes
from prunekit.graph.capture import captured
from prunekit.graph.size_equations import evaluated, solved
from prunekit.graph.size_run import OPERATIONS, Computed, Expression, Extent, Read, Size, SizeUses
from prunekit.saving import load_pretrained, save_pretrained

ROWS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Attention whose sizes are named as nobody else names them."""

    def __init__(self, width: int = 24, count: int = 4) -> None:
        super().__init__()
        self.stripes, self.stripe = count, width // count
        self.everything = (width, 3)
        self.query, self.key, self.value = (nn.Linear(6, width) for _ in range(3))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.stripes, self.stripe)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = (q @ k.transpose(-1, -2) * 0.4).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(*x.shape[:-1], self.everything[0])
        assert y.shape[-1] == self.stripes * self.stripe
        return self.out(y)


class Halves(nn.Module):
    """A gate: two halves of one layer, cut by a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = [24, 24]
        self.steps = 3  # counts no units
        self.first, self.last = nn.Linear(6, 48), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.first(x).split(self.inner, -1)
        for _ in range(self.steps):
            value = F.silu(value)
        return self.last(gate * value)


class Blur(nn.Module):
    """A fixed filter for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", torch.ones(channels, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel")
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), kernel, stride=2, groups=self.channels)


class Scaled(nn.Module):
    """A scale for each channel, laid out by an attribute; norms over groups whose width is one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.each = (16, 1, 1), 4
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 16))
        self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.scale.view(self.shape)
        return self.last(F.group_norm(x, x.shape[1] // self.each))


def blurred() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Blur(16), nn.Conv2d(16, 3, 1))


def unflattened() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.Unflatten(2, (16, 1)), nn.Flatten(2), nn.ReLU(), nn.Linear(16, 3)
    )


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any]]] = {
    "heads of other names": (
        Heads,
        ROWS,
        {"stripes": 2, "stripe": 3, "everything": (6, 3)},
    ),
    "a split by a list": (Halves, ROWS, {"inner": [12, 12], "steps": 3}),
    "groups of a fixed filter": (blurred, IMAGES, {"2.channels": 8}),
    "a layer that takes axes apart": (unflattened, ROWS, {"1.unflattened_size": (8, 1)}),
    "a view by a tuple": (Scaled, IMAGES, {"shape": (8, 1, 1), "each": 4}),
}


def attribute(model: nn.Module, name: str) -> Any:
    place, _, short = name.rpartition(".")
    return getattr(model.get_submodule(place), short)


@pytest.mark.parametrize("case", list(CASES))
def test_attributes_that_the_code_reads_are_changed(case: str, tmp_path: Any) -> None:
    make, inputs, wanted = CASES[case]
    inputs = inputs.to(torch.get_default_dtype())
    torch.manual_seed(0)
    model = make().eval()
    held = {name: copy.deepcopy(vars(module)) for name, module in model.named_modules()}
    outputs = model(inputs)
    groups(model, inputs)
    for name, module in model.named_modules():
        for key, value in held[name].items():
            if isinstance(value, (int, tuple, list)):
                assert vars(module)[key] == value
                assert type(vars(module)[key]) is type(value)
    assert torch.equal(model(inputs), outputs)

    result = prune_groups(model, inputs, 0.5)
    assert result.form == "modules", result.reason
    assert result.model is model
    assert {name: attribute(model, name) for name in wanted} == wanted
    assert all(type(attribute(model, name)) is type(value) for name, value in wanted.items())
    save_pretrained(model, tmp_path / "net")  # the network alone, as after retraining it
    fresh = load_pretrained(tmp_path / "net", make()).eval()
    assert {name: attribute(fresh, name) for name in wanted} == wanted
    assert torch.equal(fresh(inputs), model(inputs))
    assert size_attributes(fresh) == size_attributes(model)


def test_what_an_operator_is_given_is_known_as_an_expression() -> None:
    graph, *_ = captured(Heads(), ROWS.to(torch.get_default_dtype()))
    first, second = Read("", "stripes"), Read("", "stripe")
    named = {use.expression for use in graph.uses.arguments}
    assert {first, second, Read("", "everything", 0)} <= named
    view = next(node for node in graph.graph.nodes if node.name == "view")
    assert [use.place for use in graph.uses.arguments if use.node == view.name] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
    ]
    assert (Extent("reshape", 2), Computed("*", first, second)) in graph.uses.equal


class Looked(nn.Module):
    """Code that takes plain numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.table = 12, {12: 3}
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert type(self.width) is int
        return self.last(self.first(x).relu()) * self.table[self.width]


def test_code_that_takes_plain_numbers_only() -> None:
    model = Looked().eval()
    graph, *_ = captured(model, ROWS.to(torch.get_default_dtype()))
    assert graph.uses == SizeUses()
    assert type(model.width) is int
    assert prune_groups(model, ROWS.to(torch.get_default_dtype()), 0.5).form == "modules"


def test_numbers_remember_and_are_plain_otherwise() -> None:
    uses = SizeUses()
    width, heads = Size(12, Read("a", "width"), uses), Size(4, Extent("x", 1), uses)
    value = (2 * width + heads - 1) // heads % 100
    assert value == 6
    assert isinstance(value, Size)
    assert evaluated(value.expression, {Read("a", "width"): 20}, lambda _: 8) == 5
    assert isinstance(width / heads, float)
    with pytest.raises(TypeError, match="unhashable"):
        hash(width)
    uses.equal.clear()
    assert (width, 3) == (12, 3)
    assert width != heads
    assert uses.equal == [(Read("a", "width"), 12)]


NAMES = [Read("m", name) for name in "abc"]
expressions: st.SearchStrategy[Expression] = st.recursive(
    st.one_of(st.sampled_from(NAMES), st.integers(1, 4), st.builds(Extent, st.just("x"), st.integers(0, 1))),
    lambda inner: st.builds(Computed, st.sampled_from(sorted(OPERATIONS)), inner, inner),
    max_leaves=4,
)


@given(
    st.lists(expressions, min_size=1, max_size=4),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_what_is_read_by_itself_is_solved(
    others: list[Expression], before: tuple[int, ...], after: tuple[int, ...], sizes: tuple[int, int]
) -> None:
    """All attributes stand alone somewhere: then any further expressions are met by the same values."""
    new = dict(zip(NAMES, after, strict=True))

    def extent(each: Extent) -> int:
        return sizes[each.axis]

    values = [evaluated(each, new, extent) for each in others]
    equations = [(each, value) for each, value in zip(others, values, strict=True) if value is not None]
    old = dict(zip(NAMES, before, strict=True))
    found = solved([*equations, *new.items()], old, extent)
    assert {**old, **found} == new


@pytest.mark.parametrize(
    ("expression", "value", "solution"),
    [
        (Computed("*", 3, NAMES[0]), 12, 4),
        (Computed("//", Extent("x", 0), NAMES[0]), 3, 8),
        (Computed("//", NAMES[0], 2), 3, 6),
        (Computed("-", Computed("+", NAMES[0], 1), 2), 7, 8),
        (Computed("-", 10, NAMES[0]), 7, 3),
        (Computed("*", 5, NAMES[0]), 12, None),
        (Computed("-", 1, NAMES[0]), 7, None),
        (Computed("*", NAMES[1], NAMES[0]), 10, 5),
    ],
)
def test_one_unknown_in_an_expression(expression: Expression, value: int, solution: int | None) -> None:
    before = {NAMES[0]: 60, NAMES[1]: 2}
    known = [(NAMES[1], 2)] if solution == 5 else []
    found = solved([(expression, value), *known], before, lambda _: 24)
    assert found == ({} if solution is None else {NAMES[0]: solution})
    if solution is not None:
        assert evaluated(expression, {**before, **found}, lambda _: 24) == value


def test_contradictions_leave_an_attribute_as_it_is() -> None:
    assert solved([(NAMES[0], 6), (NAMES[0], 12)], {NAMES[0]: 12}, lambda _: 1) == {}
