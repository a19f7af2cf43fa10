"""The plan as data, the sizes of nodes after units are taken out, and features of the input as a group."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from prunekit.errors import InputError
from prunekit.graph import Group, GroupPlan, Member, captured, groups, shrink, traced
from prunekit.graph.coupling_graph import INPUT


@pytest.fixture
def plan() -> GroupPlan:
    first = Member("a.weight", 0, ((0, 2), (1, 3)), "producer")
    return GroupPlan(
        (
            Group("a", "heads", 2, (first, Member("b.weight", 1, ((0,), ()), "consumer")), None, ("norm",)),
            Group("c", "neurons", 3, (), "is the network's output"),
        )
    )


def test_a_plan_goes_through_json_and_back(plan):
    assert GroupPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_what_is_no_plan_is_refused(plan):
    data = plan.to_dict()
    data["groups"][0]["colour"] = "red"
    with pytest.raises(InputError, match=r"no plan.*colour"):
        GroupPlan.from_dict(data)
    with pytest.raises(InputError, match=r"no plan.*groups"):
        GroupPlan.from_dict({})


def test_groups_by_name_and_the_frozen_ones(plan):
    assert plan.group("a").units == 2
    assert [group.name for group in plan.prunable] == ["a"]
    assert plan.frozen == {"c": "is the network's output"}
    with pytest.raises(InputError, match="no group is named 'z'; there are 'a', 'c'"):
        plan.group("z")


def test_the_table_tells_why(plan):
    assert plan.table().splitlines() == [
        "group  kind     units  members  remark",
        "a      heads    2      2        statistics over kept entries: norm",
        "c      neurons  3      0        stays: is the network's output",
    ]


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 24)
        self.o = nn.Linear(8, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(2, 5, 8))


def test_heads_and_head_width_cut_a_fused_projection_both_ways():
    found = traced(Fused(), torch.randn(2, 5, 6))
    heads, width = found.plan.prunable
    assert (heads.name, heads.units) == ("qkv (heads)", 2)
    assert (width.name, width.units) == ("qkv (head width)", 4)
    rows = {member.tensor: member.indices for member in heads.members}
    assert rows["qkv.weight"][1] == (4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23)
    columns = {member.tensor: member.indices for member in width.members}
    assert columns["o.weight"] == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_every_node_knows_what_it_keeps():
    found = traced(Fused(), torch.randn(2, 5, 6))
    removed = {"qkv (heads)": [0], "qkv (head width)": [1, 2]}
    keeping = found.keeping(removed)
    (axes,) = keeping(0, "view")
    assert [None if kept is None else kept.tolist() for kept in axes] == [
        None,
        None,
        None,
        [False, True],
        [True, False, False, True],
    ]
    (flat,) = keeping(0, "reshape")
    assert flat[2].tolist() == [False] * 4 + [True, False, False, True]
    assert found.keeping({})(0, "view") == ((None,) * 5,)


def test_inputs_of_another_kind_are_refused():
    with pytest.raises(InputError, match="must be a tensor, a tuple or a dict"):
        groups(nn.Linear(2, 2), "hello")  # type: ignore[arg-type]


def test_inputs_that_do_not_fit_name_the_line():
    from prunekit.errors import ModelError

    with pytest.raises(ModelError, match="cannot be exported in eval mode"):
        groups(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), torch.randn(4, 5))


def test_named_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, *, y):
            return self.c(self.a(x) * self.b(y))

    (group,) = groups(Two(), {"x": torch.randn(2, 3), "y": torch.randn(2, 3)}).prunable
    assert {member.tensor for member in group.members} == {
        "a.weight",
        "a.bias",
        "b.weight",
        "b.bias",
        "c.weight",
    }


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="do not fit the network's forward: too many positional"):
        groups(nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 3)))


def test_sizes_that_depend_on_data_are_refused_with_the_line():
    from prunekit.errors import ModelError

    class Selecting(nn.Linear):
        def forward(self, x):
            return super().forward(x[x[:, 0] > 0])

    with pytest.raises(ModelError, match=r"(?s)sizes depend on its data.*line \d+.*x\[:, 0\] > 0"):
        captured(Selecting(3, 2), torch.randn(4, 3))
    (group,) = groups(Selecting(3, 2), torch.randn(4, 3)).groups
    assert group.frozen == "is the network's output (test_groups.py:140)"


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
        (
            nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.ReLU()),
            torch.randn(2, 6),
        ),
        (nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 5)), nn.ReLU()), torch.randn(2, 6)),
    ],
    ids=[
        *("added to units", "two inputs", "no real numbers", "one feature"),
        *("spectral norm", "spectral norm by a hook"),
    ],
)
def test_where_features_cannot_be_left_out_there_is_no_such_group(model: nn.Module, inputs: Tensor) -> None:
    plan = traced(model, inputs, inputs=True).plan
    assert all(group.name != INPUT for group in plan.groups)
    assert plan == traced(model, inputs).plan
    with pytest.raises(InputError, match="no group is named 'input'"):
        shrink(model, inputs, {INPUT: torch.tensor([True, False])})
