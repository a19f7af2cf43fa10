"""Layers scored one at a time: the same weights go, and the scores of one layer are in memory at a time."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit import prune
from prunekit.masks import Masks, lowest, stable_order
from prunekit.parts.allocation import ERK, Manual, PerLayer
from prunekit.parts.context import Scores, StepContext
from prunekit.parts.scores import LAMP, RIA, LayerOBS, Magnitude, Wanda
from prunekit.recipe import Recipe


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def data() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(4)
    return torch.randn(64, 12, generator=made), torch.randint(0, 4, (64,), generator=made)


class Watched(Magnitude):
    """Magnitudes that tell how many tensors of scores are alive when the next ones are made."""

    name = "watched_magnitude"

    def __call__(self, context: StepContext) -> Scores:
        ALIVE.append(sum(each() is not None for each in MADE))
        scores = super().__call__(context)
        MADE.extend(weakref.ref(each) for each in scores.values())
        return scores


class WatchedTogether(Watched):
    """The same, with the scores of all layers at a time."""

    name = "watched_magnitude_together"
    by_layer = False


ALIVE: list[int] = []
MADE: list[weakref.ref[Tensor]] = []


def test_the_scores_of_one_layer_are_alive_at_a_time() -> None:
    ALIVE.clear(), MADE.clear()
    chosen = {"allocation": PerLayer(), "schedule": {"name": "one_shot", "sparsity": 0.5}}
    one = prune(network(), Recipe(score=Watched(), **chosen))
    assert len(MADE) == 3
    assert ALIVE == [0, 0, 0]
    MADE.clear()
    together = prune(network(), Recipe(score=WatchedTogether(), **chosen))
    assert len(MADE) == 3
    assert one.masks == together.masks


@pytest.mark.parametrize("score", [Magnitude(), LAMP(), Wanda(), Wanda(within="layer"), RIA(), LayerOBS()])
@pytest.mark.parametrize(
    "more",
    [
        {"allocation": PerLayer(), "schedule": {"name": "linear", "sparsity": 0.75, "steps": 3}},
        {"allocation": ERK(), "schedule": {"name": "one_shot", "sparsity": 0.5}},
        {"allocation": PerLayer(), "granularity": "n:m", "schedule": {"name": "one_shot", "sparsity": 0.5}},
        {
            "allocation": Manual(sparsities={"0": 0.5, "4": 0.25}),
            "schedule": {"name": "allocation_decides", "steps": 2},
            "order": "forward",
        },
    ],
    ids=["steps", "erk", "n:m", "forward"],
)
def test_one_by_one_the_same_weights_go(score: Any, more: dict[str, Any], monkeypatch: Any) -> None:
    found = []
    for by_layer in (True, False):
        monkeypatch.setattr(type(score), "by_layer", by_layer)
        found.append(prune(network(), Recipe(score=score, **more), data()).masks)
    assert found[0] == found[1]
    assert 0 < found[0].sparsity < 1


def test_a_mask_that_is_written_to_is_counted_anew() -> None:
    masks = Masks({"a": torch.ones(3, 4, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)})
    assert masks.kept == 14
    masks["a"][0, :2] = False
    assert (masks.count("a"), masks.kept) == (10, 12)
    other = masks.replace({"b": torch.tensor([True, False])})
    assert (other.kept, masks.kept) == (11, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bfloat16])
def test_an_order_is_stable(dtype: torch.dtype) -> None:
    made = torch.Generator().manual_seed(0)
    ties = torch.randint(-3, 3, (7, 50), generator=made).to(dtype)
    without = torch.stack([torch.randperm(50, generator=made) for _ in range(5)]).to(dtype)
    for values in (ties, without, torch.cat([ties, without])):
        expected = [
            sorted(range(50), key=lambda place, row=row: (row[place], place)) for row in values.tolist()
        ]
        assert stable_order(values).tolist() == expected
    assert lowest(ties, 3).sum() == 3
