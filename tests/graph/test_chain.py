"""Reading networks as chains: what is a link, and what leaves the network as it was."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError
from prunekit.graph import INPUT, Chain, UnitGroup, chain_of
from prunekit.models import LeNet5, LeNet300100, VGGSmall


def test_lenet5() -> None:
    chain = chain_of(LeNet5((1, 28, 28), 10))
    assert chain.groups == (
        UnitGroup("conv1", 20, "conv2", 1),
        UnitGroup("conv2", 50, "fc1", 16),
        UnitGroup("fc1", 500, "fc2", 1),
    )
    assert [stage.name for stage in chain.stages] == [
        "conv1", "pool1", "conv2", "pool2", "flatten", "fc1", "act1", "fc2",
    ]  # fmt: skip


def test_batch_norms_follow_their_units() -> None:
    chain = chain_of(VGGSmall((3, 32, 32), 10, widths=((4,), (6,))))
    assert [(group.name, group.consumer, group.repeat) for group in chain.groups] == [
        ("conv1", "conv2", 1),
        ("conv2", "fc", 1),
    ]


def test_input_features() -> None:
    assert chain_of(LeNet300100((1, 28, 28), 10), inputs=True).group(INPUT).units == 784
    assert chain_of(LeNet5((3, 32, 32), 10), inputs=True).group(INPUT).units == 3
    images = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 4))
    assert chain_of(images, inputs=True).group(INPUT) == UnitGroup(INPUT, 2, "2", 9)


def test_input_features_that_cannot_be_told_matter_only_if_asked_for() -> None:
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    assert [group.name for group in chain_of(pooled).groups] == ["2"]
    with pytest.raises(ModelError, match="the model's input is no link of a chain: '2' does not read"):
        chain_of(pooled, inputs=True)


def test_single_layer_has_no_groups() -> None:
    assert chain_of(nn.Linear(3, 2)).groups == ()


class Everything(nn.Module):
    """Functions and methods in every place, and arguments with defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)
        self.drop = nn.Dropout2d()
        self.b = nn.Linear(4 * 9, 5, bias=False)
        self.c = nn.Linear(5, 2)

    def forward(self, x: Tensor, scale: float | None = None, deep: bool = True) -> Tensor:
        if scale is not None:
            x = x * scale
        batch = x.shape[0]
        x = x.view(-1, 1, 8, 8) / 2 - 0.5
        x = F.max_pool2d(self.drop(self.a(x)), 2)
        x = F.relu(F.relu6(2 * x), inplace=True).contiguous()
        x = F.dropout(x, 0.5, self.training)
        x = torch.tanh_(self.b(x.view(batch, -1)))
        if self.training:
            x = x.view(batch, 5)
        return F.log_softmax(self.c(x), dim=1) if deep else x


def test_functions_and_methods() -> None:
    model = Everything()
    chain = chain_of(model)
    assert [(group.name, group.repeat) for group in chain.groups] == [("a", 9), ("b", 1)]
    x = torch.randn(3, 64)
    y = x
    model.eval()
    for stage in chain.stages:
        given = y.clone()
        result = stage.run(y)
        assert torch.equal(y, given), f"{stage.name} changed its input"
        y = result
    torch.testing.assert_close(y, model(x))


@pytest.mark.parametrize(
    "pool", [partial(F.adaptive_max_pool2d, output_size=2), nn.AdaptiveMaxPool2d(2), nn.Dropout2d()]
)
def test_what_takes_several_operators_is_one_stage(pool: Any) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.drop = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1), nn.Dropout1d()
            self.pool = pool if isinstance(pool, nn.Module) else None
            self.c, self.d = nn.Linear(12, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b((self.pool or pool)(self.a(x)))
            return self.d(self.drop(self.c(F.adaptive_avg_pool2d(x, 2).flatten(1))))

    model, x = Pooled().eval(), torch.randn(3, 1, 9, 9)
    chain = chain_of(model)
    assert [(group.name, group.repeat) for group in chain.groups] == [("a", 1), ("b", 4), ("c", 1)]
    assert [stage.kind.name for stage in chain.stages] == [
        "LAYER", "POINTWISE" if isinstance(pool, nn.Dropout2d) else "POOL", "LAYER",
        "POOL", "FLATTEN", "LAYER", "POINTWISE", "LAYER",
    ]  # fmt: skip
    y = x
    for stage in chain.stages:
        y = stage.run(y)
    torch.testing.assert_close(y, model(x))


def test_model_is_left_as_it_was() -> None:
    model = Everything()
    model.b.eval()
    calls: list[Any] = []
    model.b.register_forward_hook(lambda *given: calls.append(given))
    model.register_forward_hook(lambda *given: calls.append(given))
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    chain_of(model)
    assert not calls
    for name, module in model.named_modules():
        assert vars(module) == before[name]
        assert list(vars(module)) == list(before[name])


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.layer(x)
        self.fresh = self.seen
        return self.seen


def test_attributes_set_in_forward_keep_nothing() -> None:
    model = Remembers()
    chain_of(model)
    assert model.seen is None
    assert not hasattr(model, "fresh")
    copy.deepcopy(model)
    pickle.dumps(model)


def test_wrappers_are_looked_through() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert chain_of(nn.DataParallel(model)).groups == chain_of(model).groups


def test_subclasses_of_layers_are_layers() -> None:
    class Named(nn.Linear):
        pass

    assert chain_of(nn.Sequential(Named(3, 4), nn.Linear(4, 2))).group("0").units == 4


def test_batch_norm_behind_a_flatten_has_entries_for_each_position() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2))
    assert chain_of(model).group("0") == UnitGroup("0", 3, "3", 4)


def test_number_written_into_forward_fixes_the_units() -> None:
    class Tutorial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(-1, 16))

    group = chain_of(Tutorial()).group("conv")
    assert group.repeat == 4


def test_groups_by_name() -> None:
    chain: Chain = chain_of(LeNet300100((4,), 3))
    assert chain.group("fc1") == UnitGroup("fc1", 300, "fc2", 1)
    with pytest.raises(InputError, match=r"no group of units 'fc3'; groups are: fc1, fc2"):
        chain.group("fc3")
