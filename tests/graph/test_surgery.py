"""Flags, masks over parameters, and counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph import GroupPlan, parameters_after, traced, unit_masks
from prunekit.graph.coupling_graph import INPUT
from prunekit.models import LeNet5, LeNet300100


def flags(units: int, *removed: int) -> Tensor:
    kept = torch.ones(units, dtype=torch.bool)
    kept[list(removed)] = False
    return kept


def conv_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2)
    )


def plan_of(model: nn.Module, *shape: int) -> GroupPlan:
    return traced(model, torch.randn(2, *(shape or (1, 3, 3))), inputs=True).plan


def test_masks_by_hand() -> None:
    model = conv_model()
    masks = unit_masks(model, plan_of(model), {"0": flags(3, 1), "4": flags(4, 0, 3)})
    assert set(masks) == {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias", "5.weight"}
    assert masks["0.weight"].flatten(1).all(1).tolist() == [True, False, True]
    assert masks["0.weight"].flatten(1).any(1).tolist() == [True, False, True]
    for name in ("0.bias", "1.weight", "1.bias"):
        assert masks[name].tolist() == [True, False, True]
    columns = [True] * 4 + [False] * 4 + [True] * 4
    assert masks["4.weight"].tolist() == [[False] * 12, columns, columns, [False] * 12]
    assert masks["4.bias"].tolist() == [False, True, True, False]
    assert masks["5.weight"].tolist() == [[False, True, True, False]] * 2


def test_groups_that_are_not_named_are_not_masked() -> None:
    model = conv_model()
    assert set(unit_masks(model, plan_of(model), {"4": flags(4, 0)})) == {"4.weight", "4.bias", "5.weight"}


def test_counts_by_hand() -> None:
    model = LeNet300100((1, 28, 28), 10)
    plan = plan_of(model, 1, 28, 28)
    assert parameters_after(model, plan, {}) == 266_610
    kept = {"fc1": flags(300, *range(100)), "fc2": flags(100, *range(90))}
    assert parameters_after(model, plan, kept) == 785 * 200 + 201 * 10 + 11 * 10
    kept[INPUT] = flags(784, *range(284))
    assert parameters_after(model, plan, kept) == 501 * 200 + 201 * 10 + 11 * 10
    lenet = LeNet5((1, 28, 28), 10)
    halves = {"conv1": flags(20, *range(10)), "conv2": flags(50, *range(25)), "fc1": flags(500, *range(250))}
    hand = (25 + 1) * 10 + (10 * 25 + 1) * 25 + (25 * 16 + 1) * 250 + (250 + 1) * 10
    assert parameters_after(lenet, plan_of(lenet, 1, 28, 28), halves) == hand


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ({"7": flags(3)}, "no group is named '7'; there are '0', '4', '5'"),
        ({"4": flags(5)}, r"kept\['4'\] has shape \(5,\), the group has 4 units"),
        ({"4": flags(3)}, r"kept\['4'\] has shape \(3,\), the group has 4 units"),
        ({"4": flags(4)[None]}, r"kept\['4'\] has shape \(1, 4\)"),
        ({"4": torch.ones(4)}, r"kept\['4'\] must be a boolean tensor"),
        ({"4": [True] * 4}, r"kept\['4'\] must be a boolean tensor"),
        ({"4": flags(4, 0, 1, 2, 3)}, r"kept\['4'\] removes all 4 units: at least one must stay"),
    ],
)
def test_flags_that_are_refused(kept: dict[str, Tensor], why: str) -> None:
    model = conv_model()
    plan = plan_of(model)
    with pytest.raises(InputError, match=why):
        unit_masks(model, plan, kept)
    with pytest.raises(InputError, match=why):
        parameters_after(model, plan, kept)


def test_empty_group_if_asked_for() -> None:
    model = conv_model()
    masks = unit_masks(model, plan_of(model), {"4": flags(4, 0, 1, 2, 3)}, allow_empty=True)
    assert not masks["5.weight"].any()
    assert parameters_after(model, plan_of(model), {"4": ~flags(4)}, allow_empty=True) == (4 + 1) * 3 + 6 + 2
