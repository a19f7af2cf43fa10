"""Regularizers in a loop of one's own, interrupted, resumed and copied: each step is the one of before."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunekit import Recipe
from prunekit.parts.regularize import Regularizer
from prunekit.pruning import Session
from small_nets import blobs, copied, mlp, same

INPUTS, TARGETS = blobs(96)
SETTINGS: dict[str, dict[str, Any]] = {
    "l1": {"name": "l1", "strength": 0.02},
    "l2": {"name": "l2", "strength": 0.2},
    "lasso, proximal": {"name": "group_lasso", "strength": 0.3},
    "lasso, subgradient": {"name": "group_lasso", "strength": 0.3, "form": "subgradient", "threshold": 0.02},
    "lasso of channels": {"name": "group_lasso", "strength": 0.3, "groups": "channels"},
    "l0 of units": {"name": "l0", "density": 0.5, "lr": 0.1, "ramp": 8},
    "l0 of a shape": {
        "name": "l0",
        "inputs": True,
        "density": {"input": 0.4, "0": 0.3},
        "lr": 0.1,
        "ramp": 8,
    },
    "l0 of weights": {"name": "l0", "of": "weights", "strength": 1.0, "lr": 0.1},
}
ALL = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
ZEROS = {
    "warm_up": {},
    "granularity": "unit",
    "allocation": "zeros",
    "schedule": {"name": "allocation_decides", "steps": 3},
}


class Loop:
    """A loop of a user's, with a regularizer and, where a recipe is given, its pruning."""

    def __init__(self, settings: dict[str, Any] | None, seed: int = 0, **recipe: Any) -> None:
        self.model: nn.Module = mlp(10, 20, 3, seed=seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.5)
        self.session: Session | None = None
        if recipe:
            self.session = Recipe.parse(recipe).attach(
                self.model, self.optimizer, every=40, example_inputs=INPUTS[:2]
            )
        self.handles: list[Any] = []
        if settings is not None:
            self.handles = Regularizer.build(settings).attach(self.model, self.optimizer)

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            self.optimizer.zero_grad()
            cross_entropy(self.model(INPUTS), TARGETS).backward()
            self.optimizer.step()

    def states(self) -> list[Any]:
        parts = [self.model, self.optimizer, *([self.session] if self.session else [])]
        return [copy.deepcopy(part.state_dict()) for part in parts]

    def load(self, states: list[Any]) -> None:
        parts = [self.model, self.optimizer, *([self.session] if self.session else [])]
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)

    def removed(self) -> dict[str, torch.Tensor]:
        """The network's values once nothing acts any more."""
        for handle in self.handles:
            handle.remove()
        return copied(self.model)


@ALL
def test_a_copy_is_acted_on_as_the_original_is_and_the_original_is_not_touched(settings) -> None:
    one = Loop(settings)
    one.steps(0, 10)
    before = copied(one.model)
    twin = copy.deepcopy(one)
    twin.steps(10, 20)
    assert same(copied(one.model), before)
    one.steps(10, 20)
    plain = copy.deepcopy(one.model)
    assert same(copied(twin.model), copied(one.model))
    found = twin.removed()
    assert same(copied(one.model), copied(plain))  # the original's gates are still there
    assert same(found, one.removed())
    assert list(found) == list(copied(mlp(10, 20, 3)))


@ALL
def test_a_copy_learns_something_else_without_the_regularizer(settings) -> None:
    """So that the test above does not compare two loops in which nothing acts."""
    with_one, without = Loop(settings), Loop(None)
    with_one.steps(0, 12)
    without.steps(0, 12)
    assert not same(with_one.removed(), without.removed())


@ALL
def test_handles_that_were_removed_stay_so_in_a_copy(settings) -> None:
    one = Loop(settings)
    one.steps(0, 10)
    one.removed()
    twin = copy.deepcopy(one)
    plain = Loop(None)
    plain.load(one.states())
    twin.steps(10, 14)
    plain.steps(10, 14)
    assert same(copied(twin.model), copied(plain.model))


@ALL
def test_a_loop_goes_on_from_its_checkpoint_bit_for_bit(settings) -> None:
    whole, first = Loop(settings), Loop(settings)
    whole.steps(0, 20)
    first.steps(0, 10)
    second = Loop(settings, seed=5)
    second.load(first.states())
    second.steps(10, 20)
    assert same(copied(second.model), copied(whole.model))
    assert same(second.removed(), whole.removed())


@pytest.mark.parametrize(("form", "strength"), [("proximal", 0.5), ("subgradient", 0.25)])
def test_lasso_and_a_pruning_in_one_loop_resumed_and_copied(form: str, strength: float) -> None:
    """Units that the lasso brings to zero go at the next step of the pruning, and stay gone.

    The session is attached first: it has to see what the lasso makes of a step all the same.
    """
    settings = {"name": "group_lasso", "strength": strength, "form": form, "threshold": 0.02}
    whole = Loop(settings, **ZEROS)
    whole.steps(0, 130)
    assert whole.session is not None
    assert len(whole.session.history) == 3
    assert 0 < whole.session.kept.kept < 20
    for name, mask in whole.session.masks.items():
        assert not whole.model.get_parameter(name)[~mask].any()
    for cut in (30, 50, 100):
        first = Loop(settings, **ZEROS)
        first.steps(0, cut)
        second = Loop(settings, seed=5, **ZEROS)
        second.load(first.states())
        twin = copy.deepcopy(first)
        for each in (second, twin):
            each.steps(cut, 130)
            assert same(copied(each.model), copied(whole.model))
            assert each.session is not None
            assert each.session.masks == whole.session.masks
