"""Flags, masks over parameters, and counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.models import lenet5, lenet_300_100
from prunekit.structure import INPUT, chain_of, kept_all, parameters_after, unit_masks


def flags(units: int, *removed: int) -> Tensor:
    kept = torch.ones(units, dtype=torch.bool)
    kept[list(removed)] = False
    return kept


def conv_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2)
    )


def test_kept_all_keeps_every_unit() -> None:
    kept = kept_all(chain_of(conv_model(), inputs=True))
    assert {name: tuple(units.shape) for name, units in kept.items()} == {INPUT: (1,), "0": (3,), "4": (4,)}
    assert all(bool(units.all()) for units in kept.values())


def test_masks_by_hand() -> None:
    model = conv_model()
    masks = unit_masks(model, chain_of(model), {"0": flags(3, 1), "4": flags(4, 0, 3)})
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
    assert set(unit_masks(model, chain_of(model), {"4": flags(4, 0)})) == {"4.weight", "4.bias", "5.weight"}


def test_counts_by_hand() -> None:
    model = lenet_300_100((1, 28, 28), 10)
    chain = chain_of(model, inputs=True)
    assert parameters_after(model, chain, {}) == 266_610
    kept = {"fc1": flags(300, *range(100)), "fc2": flags(100, *range(90))}
    assert parameters_after(model, chain, kept) == 785 * 200 + 201 * 10 + 11 * 10
    kept[INPUT] = flags(784, *range(284))
    assert parameters_after(model, chain, kept) == 501 * 200 + 201 * 10 + 11 * 10
    lenet = lenet5((1, 28, 28), 10)
    halves = {"conv1": flags(20, *range(10)), "conv2": flags(50, *range(25)), "fc1": flags(500, *range(250))}
    hand = (25 + 1) * 10 + (10 * 25 + 1) * 25 + (25 * 16 + 1) * 250 + (250 + 1) * 10
    assert parameters_after(lenet, chain_of(lenet), halves) == hand


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ({"7": flags(3)}, "there is no group of units '7'; groups are: 0, 4"),
        ({"5": flags(2)}, "there is no group of units '5'"),
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
    chain = chain_of(model)
    with pytest.raises(InputError, match=why):
        unit_masks(model, chain, kept)
    with pytest.raises(InputError, match=why):
        parameters_after(model, chain, kept)


def test_empty_group_if_asked_for() -> None:
    model = conv_model()
    masks = unit_masks(model, chain_of(model), {"4": flags(4, 0, 1, 2, 3)}, allow_empty=True)
    assert not masks["5.weight"].any()
    assert parameters_after(model, chain_of(model), {"4": ~flags(4)}, allow_empty=True) == (4 + 1) * 3 + 6 + 2
