"""Features of a network's input as a group of the plan: without one, it computes what it did for a zero."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph import shrink, traced
from prunekit.graph.groups import INPUT


class Sum(nn.Module):
    """What two layers make of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 4), nn.Linear(5, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x)) + self.b(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + torch.relu(self.a(x)))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) * self.b(y)


def rows(*layers: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 4), *layers, nn.ReLU(), nn.Linear(4, 2))


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3))


def over_time() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(5, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3))


# the network, the shape of its inputs, and how many features it has
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "a row of numbers": (linear, (3, 5), 5),
    "images as rows": (lambda: rows(width=18), (3, 2, 3, 3), 18),
    "grey images as rows": (lambda: rows(width=9), (3, 1, 3, 3), 9),
    "channels": (convolutions, (2, 3, 5, 5), 3),
    "normalised channels": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 2)),
        (3, 3, 4, 4),
        3,
    ),
    "numbers at several times": (linear, (3, 6, 5), 5),
    "channels over time": (over_time, (3, 5, 9), 5),
    "read by two layers": (Sum, (3, 5), 5),
}


@pytest.mark.parametrize("name", NETS)
def test_without_a_feature_the_network_computes_what_it_did_for_a_zero(name: str) -> None:
    build, shape, features = NETS[name]
    model, x = build().double().eval(), torch.randn(*shape, dtype=torch.float64)
    found = traced(model, x, inputs=True)
    assert found.plan.groups[0].name == INPUT
    assert found.plan.groups[0].units == features
    assert [group for group in found.plan.groups if group.name != INPUT] == list(traced(model, x).plan.groups)
    for gone in range(0, features, 4):
        kept = torch.arange(features) != gone
        silenced = copy.deepcopy(model)
        for member in found.plan.groups[0].members:
            parameter = dict(silenced.named_parameters()).get(member.tensor)
            if parameter is not None:
                parameter.data.index_fill_(member.dim, torch.tensor(member.indices[gone]), 0)
        smaller = copy.deepcopy(model)
        result = shrink(smaller, x, {INPUT: kept}, found=found)
        assert result.form == "modules"
        assert result.kept_inputs is not None
        assert gone not in result.kept_inputs.tolist()
        assert found.features is not None
        narrow = found.features.narrowed(x, kept)
        assert narrow.numel() * features == x.numel() * (features - 1)
        torch.testing.assert_close(smaller(narrow), silenced(x))
        if name != "normalised channels":
            zeroed = x.clone().flatten(1) if name.endswith("as rows") else x.clone()
            zeroed.select(found.features.axis or 1, gone).zero_()
            torch.testing.assert_close(smaller(narrow), model(zeroed.view(x.shape)))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Residual(), torch.randn(3, 5)),
        (Two(), (torch.randn(3, 5), torch.randn(3, 4))),
        (nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)), torch.arange(6).view(2, 3)),
        (nn.Sequential(nn.LSTM(1, 4, batch_first=True)), torch.randn(3, 1, 1)),
    ],
    ids=["added to units", "two inputs", "no real numbers", "one feature"],
)
def test_where_features_cannot_be_left_out_there_is_no_such_group(model: nn.Module, inputs: Tensor) -> None:
    plan = traced(model, inputs, inputs=True).plan
    assert all(group.name != INPUT for group in plan.groups)
    assert plan == traced(model, inputs).plan
    with pytest.raises(InputError, match="no group is named 'input'"):
        shrink(model, inputs, {INPUT: torch.tensor([True, False])})
