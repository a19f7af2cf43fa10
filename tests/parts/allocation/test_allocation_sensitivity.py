import numpy as np
import pytest
import torch
from allocation_context import context_of
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.allocation import Sensitivity

GRID = (0.2, 0.4, 0.6, 0.8)


def toy(costs: dict[str, float]):
    """A loss that rises with a layer's sparsity squared, at a cost of its own."""

    def loss(masks: Masks) -> float:
        return sum(cost * float((~masks[name]).double().mean()) ** 2 for name, cost in costs.items())

    return loss


def scores(sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    return {
        name: torch.rand(size, 10, generator=torch.Generator().manual_seed(1)) for name, size in sizes.items()
    }


def test_layers_end_at_the_same_loss_increase():
    costs = {"a": 1.0, "b": 4.0}
    grid = tuple(np.linspace(0.02, 0.98, 49))
    found = Sensitivity(grid=grid).amounts(
        context_of(scores({"a": 100, "b": 100}), 0.45, loss_with=toy(costs))
    )
    assert sum(found.values()) == 900
    # cost_a s_a^2 = cost_b s_b^2 and s_a + s_b = 0.9 give s_a = 0.6, s_b = 0.3
    assert found["a"] == pytest.approx(600, abs=5)
    assert found["b"] == pytest.approx(300, abs=5)


@given(st.floats(0.05, 0.95), st.lists(st.floats(0, 10), min_size=3, max_size=3))
def test_the_total_is_exact(sparsity, costs):
    names = ("a", "b", "c")
    given_ = context_of(
        scores({"a": 3, "b": 7, "c": 20}), sparsity, loss_with=toy(dict(zip(names, costs, strict=True)))
    )
    found = Sensitivity(grid=GRID).amounts(given_)
    assert sum(found.values()) == round(sparsity * 300)


def test_a_dip_does_not_make_more_removal_cheaper():
    # layer a gets better when half of it is gone; that is no reason to take all of it
    def loss(masks: Masks) -> float:
        gone = float((~masks["a"]).double().mean())
        return -0.5 if 0.3 < gone < 0.7 else gone + float((~masks["b"]).double().mean())

    found = Sensitivity(grid=GRID).amounts(context_of(scores({"a": 20, "b": 20}), 0.3, loss_with=loss))
    assert sum(found.values()) == 120


def test_later_rounds_start_from_what_is_gone():
    """A layer that lost more than the equal increase grants keeps its loss, and the total stays exact."""
    layers = scores({"a": 20, "b": 20})
    gone = torch.zeros(20, 10, dtype=torch.bool)
    gone.view(-1)[:130] = True  # 65 %, between two points of the grid
    masks = Masks({"a": ~gone, "b": torch.ones(20, 10, dtype=torch.bool)})
    found = Sensitivity(grid=GRID).amounts(
        context_of(layers, 0.5, masks=masks, loss_with=toy({"a": 100.0, "b": 0.001}))
    )
    assert found["a"] >= 130
    assert sum(found.values()) == 200


@pytest.mark.parametrize("grid", [(0.5, 0.5), (0.5, 0.2), (0.0, 0.5), ()])
def test_the_grid_increases(grid):
    with pytest.raises(InputError, match=r"sensitivity: .*grid"):
        Sensitivity(grid=grid)
