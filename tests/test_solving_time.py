"""The time of long work, worked out by hand from given rates, and told before it begins."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from prunekit import prune
from prunekit.methods import exact_layer_obs, magnitude, sparsegpt, wanda
from prunekit.obs.rates import Rates, growth
from prunekit.pruning import solving_time
from prunekit.pruning.time_ahead import in_words

RATES = Rates(single=1e9, double=1e8, factorised=1e7, ranked=1e6, removal=(2e-6, 3e-9))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def test_by_hand() -> None:
    assert solving_time(network(), magnitude(0.5), RATES) == {"0.weight": 0, "2.weight": 0}
    assert solving_time(network(), wanda(0.5), RATES) == {"0.weight": 600 / 1e6, "2.weight": 300 / 1e6}
    found = solving_time(network(), exact_layer_obs(0.75), RATES)["2.weight"]
    eliminated = 10 * (2e-6 * 30**2 + 3e-9 * 30**3) + 30**3 * 4 / 3 / 1e7
    refitted = (10 * (30 / 4) ** 3 / 3 + 30**3 * 4 / 3) / 1e7
    assert found == pytest.approx(eliminated + refitted)
    found = solving_time(network(), sparsegpt(0.5), RATES)["0.weight"]
    cube, columns = 20**3 * 2 / 3, 30 * 20**2
    assert found == pytest.approx(cube / 1e7 + (cube + 2 * columns) / 1e8)


def test_every_step_of_a_schedule_counts() -> None:
    once = solving_time(network(), wanda(0.5), RATES)
    recipe = wanda(0.5).model_copy(update={"schedule": {"name": "linear", "sparsity": 0.5, "steps": 3}})
    again = solving_time(network(), type(recipe).parse(recipe.to_dict()), RATES)
    assert again == {name: pytest.approx(3 * seconds) for name, seconds in once.items()}


def test_growth_goes_through_both_measurements() -> None:
    square, cube = growth(10, 2e-3, 30, 3e-2)
    assert square * 100 + cube * 1000 == pytest.approx(2e-3)
    assert square * 900 + cube * 27000 == pytest.approx(3e-2)
    assert growth(10, 1.0, 30, 4.0) == (pytest.approx(4 / 900), 0.0)  # grows by less than the square
    square, cube = growth(10, 1.0, 30, 4.0, 1e-4)
    assert (cube, square * 900 + cube * 27000) == (1e-4, pytest.approx(4.0))
    assert growth(10, 1e-6, 30, 27.0) == (pytest.approx(0.0), pytest.approx(1e-3))  # by more than the cube


def test_measured_rates_are_positive() -> None:
    found = Rates.measured(64)
    assert min(found.single, found.double, found.factorised, found.ranked) > 0
    assert found.elimination(3, 100) > 0


def test_long_work_is_told_before_it_begins(monkeypatch: Any, caplog: Any) -> None:
    slow = Rates(**{**vars(RATES), "ranked": 1e-2})
    monkeypatch.setattr(Rates, "measured", classmethod(lambda cls: slow))
    monkeypatch.setattr("prunekit.pruning.time_ahead.USUAL", slow)
    told: list[str] = []
    model = network()
    model.register_forward_pre_hook(lambda *_: told.append(caplog.text))
    data = torch.randn(8, 20), torch.randint(0, 10, (8,))
    with caplog.at_level(logging.WARNING, "prunekit"):
        prune(model, wanda(0.5), data)
    assert "weights of 2 layers will take about 25 hours, most of it for 0.weight (16.7 hours)" in told[-1]
    caplog.clear()
    monkeypatch.undo()
    prune(network(), wanda(0.5), data)
    assert not caplog.text


def test_words() -> None:
    assert [in_words(each) for each in (3.21, 119, 120, 7200, 200000)] == [
        *("3.21 seconds", "119 seconds", "2 minutes", "2 hours", "2.31 days")
    ]
