"""Networks in the styles of many repositories: half goes, by a check that shares no code with the proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import independent
import pytest
import torch
from torch import nn
from wide_zoo import PARTS, halved, made_wide

from prunekit.errors import ModelError
from prunekit.graph import groups, prune_groups
from zoo import OWN

NAMES = [name for part in ("the literature", "held out") for name in PARTS[part] if name not in OWN]
MAY_BE_REFUSED = {"gat", "tabnet", "torch-transformer"}


def plainly(model: nn.Module) -> list[Any]:
    """Classes and attributes of all modules, and the state as lists of numbers."""
    kept = (int, float, str, bool, tuple)
    modules = [
        (type(each), {key: value for key, value in vars(each).items() if isinstance(value, kept)})
        for each in model.modules()
    ]
    return [modules, {key: value.tolist() for key, value in model.state_dict().items()}]


@pytest.mark.parametrize("name", NAMES)
def test_half_goes_and_the_rest_computes_what_it_did(name: str) -> None:
    model, inputs = made_wide(name)
    before, outputs = plainly(model), independent.call(model, inputs)
    try:
        plan = groups(model, inputs)
        assert plainly(model) == before
        assert all(map(torch.equal, independent.call(model, inputs), outputs))
        result = halved(name, plan) if plan.prunable else prune_groups(model, inputs, 0.5)
    except ModelError:
        if name not in MAY_BE_REFUSED:
            raise
        assert plainly(model) == before
        return
    original, inputs = made_wide(name)
    if result is None:
        result = prune_groups(original, inputs, 0.5)
        assert result.parameters_after < result.parameters_before
        return
    assert result.parameters_after < sum(each.numel() for each in original.parameters())
    small, silent = result.model, independent.silenced(original, result.axes)
    inputs, rounding = independent.sharpest(small, silent, inputs)
    drawn = independent.mapped(inputs, lambda x: torch.randn_like(x) if x.is_floating_point() else x)
    assert independent.difference(independent.call(silent, drawn), independent.call(small, drawn)) < rounding
    batch = independent.other_batch(drawn)
    if batch is not None and result.form == "modules":
        wanted, found = independent.call(silent, batch), independent.call(small, batch)
        assert independent.difference(wanted, found) < rounding


def test_the_check_sees_what_is_wrong() -> None:
    model, inputs = made_wide("vgg")
    result = prune_groups(model, inputs, 0.5)
    original, _ = made_wide("vgg")
    silent = independent.silenced(original, result.axes)
    found = independent.call(result.model, inputs)
    assert independent.difference(independent.call(silent, inputs), found) < independent.ROUNDING
    first: Mapping[int, torch.Tensor] = next(iter(result.axes.values()))
    wrong = independent.silenced(original, {**result.axes, next(iter(result.axes)): {0: ~first[0]}})
    assert independent.difference(independent.call(wrong, inputs), found) > 1e-3
