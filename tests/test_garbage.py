"""Old objects are left alone within a call, and looked through again behind it."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from prunekit.errors import ModelError
from prunekit.garbage import old_objects_left_alone
from prunekit.graph import groups, prune_groups


def test_the_outer_one_lasts() -> None:
    with old_objects_left_alone():
        assert gc.get_freeze_count()
        with old_objects_left_alone():
            pass
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()


def test_what_somebody_else_keeps_from_being_looked_through_stays_so() -> None:
    gc.freeze()
    try:
        with old_objects_left_alone():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_surgery_leaves_old_objects_alone_until_it_ends() -> None:
    frozen = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            frozen.append(gc.get_freeze_count() > 0)
            return super().forward(x)

    model = nn.Sequential(Watched(3, 4), nn.ReLU(), nn.Linear(4, 2))
    groups(model, torch.randn(2, 3))
    prune_groups(model, torch.randn(2, 3), 0.5)
    assert frozen
    assert all(frozen)
    with pytest.raises(ModelError):
        groups(model, torch.randn(2, 5))
    assert not gc.get_freeze_count()
