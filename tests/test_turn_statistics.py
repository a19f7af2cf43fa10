"""Layers pruned one after the other in few passes: the same as by full passes, step by step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit import prune
from prunekit.errors import ModelError
from prunekit.methods import alps, sparsegpt, wanda
from prunekit.parts.repair import SparseGPTUpdate, weight_repairs
from prunekit.pruning import Session
from prunekit.recipe import Recipe
from prunekit.statistics import LayerHessian, StatContext, collect
from prunekit.statistics.shared_inputs import SharedInputs


class Attention(nn.Module):
    """Queries, keys and values of the same tensor; with `inplace` that is written to behind the queries."""

    def __init__(self, width: int, *, inplace: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self._inplace, self._twice = inplace, twice

    def forward(self, x: Tensor) -> Tensor:
        given = x.clone()
        query = self.query(given)
        if self._inplace:
            given += query
        key, value = self.key(given), self.value(given)
        scores = (query @ key.mT / 3).softmax(-1)
        found = self.out(scores @ value)
        return x + (self.out(found) if self._twice else found)


class Stack(nn.Module):
    def __init__(self, **more: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Attention(6, **more), Attention(6, **more)
        self.head = nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        self.calls += 1  # a pass that ends early does not get here
        return self.head(x.mean(1))


def data(count: int = 40) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    x, y = torch.randn(count, 5, 6, generator=made), torch.randint(0, 3, (count,), generator=made)
    return [(x[start : start + 10], y[start : start + 10]) for start in range(0, count, 10)]


def stepped(model: nn.Module, recipe: Recipe) -> Any:
    """Each step with full passes: between steps of `advance` a user may do anything."""
    session = Session(model, recipe, data=data())
    while not session.done:
        session.advance()
    return session.result()


@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.parametrize("more", [{}, {"inplace": True}, {"twice": True}], ids=["plain", "inplace", "twice"])
@pytest.mark.parametrize("named", [sparsegpt, wanda, alps])
def test_the_same_as_step_by_step(named: Any, more: dict[str, bool], order: Any) -> None:
    recipe = named(0.5).model_copy(update={"order": order})
    one, other = Stack(**more), Stack(**more)
    pruned, expected = prune(one, recipe, data()), stepped(other, recipe)
    assert pruned.masks == expected.masks
    for name, value in other.state_dict().items():
        assert torch.equal(value, one.state_dict()[name]), name


@pytest.mark.parametrize(("damp", "sweeps"), [(0.01, 0), (0.1, 9)])
def test_the_repair_takes_the_weights_of_the_selections_sweep(
    damp: float, sweeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[int] = []
    sweep = weight_repairs.left_to_right
    monkeypatch.setattr(
        weight_repairs, "left_to_right", lambda *args, **more: swept.append(1) or sweep(*args, **more)
    )
    recipe = sparsegpt(0.5).model_copy(update={"repair": SparseGPTUpdate(damp=damp)})
    one, other = Stack(), Stack()
    prune(one, recipe, data())
    assert len(swept) == sweeps  # of another damping the weights are others
    stepped(other, recipe)
    assert len(swept) == sweeps + 9
    for name, value in other.state_dict().items():
        assert torch.equal(value, one.state_dict()[name]), name


def test_passes_end_behind_the_layer_and_the_same_inputs_are_measured_once() -> None:
    model, other = Stack(), Stack()
    seen: list[str] = []
    for name in ("query", "key", "value", "out"):
        getattr(model.second, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    prune(model, sparsegpt(0.5), data())
    stepped(other, sparsegpt(0.5))
    # 4 batches: 9 layers in full passes; else the first layer's pass is full, and the last one's is
    assert other.calls - model.calls == 4 * (9 - 2)
    # a full pass for the first layer and for the head; behind the first block's other layers none goes on
    full = seen.count("out")
    assert seen.count("query") - full == 4 * 2  # for query and key together, and for the value (with a bias)


def test_layers_of_one_input_are_found() -> None:
    names = ("first.query.weight", "first.key.weight", "first.value.weight", "first.out.weight")
    expected = {
        "plain": [[1, 0], [1, 0], [1, 0], [1, 3]],
        "inplace": [[1, 0], [1, 1], [1, 1], [1, 3]],
        "twice": [[1, 0], [1, 0], [1, 0], [2, 3]],
    }
    for case, wanted in expected.items():
        model = Stack(**({} if case == "plain" else {case: True}))
        found = collect(StatContext(model, names[:1]), data(), [SharedInputs(names), LayerHessian()])
        assert [found[SharedInputs(names)][name].tolist() for name in names] == wanted, case
        assert set(found[LayerHessian()]) == {names[0]}


class Experts(nn.Module):
    """The second layer sees the same tensor as the first, but not in every batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.one(x)
        if float(x[0, 0, 0]) > 0:
            found = found + self.other(x)
        return self.head(found.mean(1))


def test_a_layer_that_some_batches_skip_is_measured_by_itself() -> None:
    assert len({float(x[0, 0, 0]) > 0 for x, _ in data()}) == 2
    one, other = Experts(), Experts()
    assert prune(one, sparsegpt(0.5), data()).masks == stepped(other, sparsegpt(0.5)).masks
    assert torch.equal(one.other.weight, other.other.weight)


def test_a_failing_step_leaves_the_network_as_it_was() -> None:
    model = Stack()
    before = copy.deepcopy(model.state_dict())
    seen = []

    def failing(*_: Any) -> None:
        seen.append(1 / (7 - len(seen)))  # in a later step than the first

    hook = model.second.out.register_forward_pre_hook(failing)
    with pytest.raises(ModelError, match="division by zero"):
        prune(model, sparsegpt(0.5), data())
    hook.remove()
    for name, value in before.items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert not any(module._forward_hooks for module in model.modules())
