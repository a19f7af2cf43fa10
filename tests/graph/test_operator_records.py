"""The records of the operators, compared with PyTorch's own schemas and kernels."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunekit.graph import groups, shrink
from prunekit.graph.ops import OPERATORS
from prunekit.graph.ops.pointwise import zero_of_clamp, zero_stays
from prunekit.graph.ops.registry import operators
from prunekit.graph.reference_run import exact
from prunekit.saving.graph_values import OVERLOADS, named_operator

ALLOWED = Path(__file__).parents[1] / "saving" / "allowed_overloads.json"


def test_a_saved_graph_may_hold_these_overloads_and_no_others() -> None:
    """Another one is a decision about safety: it is made here, too, by hand."""
    assert sorted(OVERLOADS) == json.loads(ALLOWED.read_text())


def test_every_saved_overload_is_one_of_pytorch() -> None:
    """A name that is mistyped would never be met."""
    assert all(callable(named_operator(name)) for name in OVERLOADS)


def test_an_operator_has_one_record() -> None:
    """Its second place would be the one that nobody finds."""
    with pytest.raises(ValueError, match="'conv2d' has a record already"):
        operators("conv2d")


@pytest.mark.parametrize("name", [name for name, each in OPERATORS.items() if each.convolves])
def test_a_convolution_has_groups_by_its_schema(name: str) -> None:
    """In every overload."""
    packet = getattr(torch.ops.aten, name)
    for overload in packet.overloads():
        names = [argument.name for argument in getattr(packet, overload)._schema.arguments]
        if overload != "out":
            assert "groups" in names


@pytest.mark.parametrize("name", [name for name, each in OPERATORS.items() if each.zero is zero_stays])
def test_what_keeps_zero_gives_zero_for_zero(name: str) -> None:
    """All tensors at zero, whatever the number beside them."""
    function = getattr(torch, name, None) or getattr(nn.functional, name)
    zeros = torch.zeros(3)
    count = 2 if name in ("maximum", "minimum", "fmax", "fmin", "atan2", "lerp") else 1
    numbers = (0.3,) if name == "lerp" else ()
    found: Tensor = function(*[zeros] * count, *numbers)
    assert not found.any()


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("clamp", (-1.0, 1.0), {}),
        ("clamp", (0.5,), {}),
        ("clamp", (), {"max": -0.5}),
        ("clamp_min", (0.5,), {}),
        ("clamp_min", (-0.5,), {}),
        ("clamp_max", (-0.5,), {}),
        ("clamp_max", (0.5,), {}),
        ("hardtanh", (), {}),
        ("hardtanh", (0.5, 1.0), {}),
        ("hardtanh", (), {"min_val": -2.0, "max_val": -1.0}),
    ],
)
def test_zero_between_bounds(name: str, args: tuple[float, ...], kwargs: dict[str, float]) -> None:
    """It stays zero where PyTorch leaves it so."""
    function = getattr(torch, name, None) or getattr(nn.functional, name)
    rule = OPERATORS[name].zero
    assert rule is not None
    said = rule([True], ((), *args), kwargs)
    assert said == (not function(torch.zeros(3), *args, **kwargs).any())
    assert zero_of_clamp([True], ((), ((),)), {}) is False  # a tensor as the bound: nothing is known


@pytest.mark.parametrize(
    ("number", "layer", "sizes"), [(2, 0, (6, 8, 2)), (2, 2, (8, 6, 2)), (4, 0, (6, 6, 3))]
)
def test_a_transposed_convolution_loses_groups(number: int, layer: int, sizes: tuple[int, ...]) -> None:
    """The layer itself gets its new sizes, and computes what it did with the units at zero."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, groups=number), nn.Conv2d(8, 2, 3)
    ).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([False, True, True, True])
    shrunk = shrink(model, x, {str(layer): kept}).model
    assert isinstance(shrunk, nn.Sequential)
    assert (shrunk[2].in_channels, shrunk[2].out_channels, shrunk[2].groups) == sizes


class _Turned(nn.Module):
    def __init__(self, quarters: int, dims: tuple[int, int]) -> None:
        super().__init__()
        self.quarters, self.dims = quarters, dims

    def forward(self, x: Tensor) -> Tensor:
        """One plane turned."""
        return torch.rot90(x, self.quarters, self.dims)


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
@pytest.mark.parametrize("dims", [(2, 3), (1, 2), (3, 1)])
def test_a_turned_plane_carries_its_channels_along(quarters: int, dims: tuple[int, int]) -> None:
    """Labels go where NumPy puts the numbers of the channels."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), _Turned(quarters, dims), nn.Conv2d(6, 4, 1)).eval()
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    turned = np.rot90(np.broadcast_to(np.arange(6)[:, None, None], (2, 6, 6, 6)), quarters, dims)
    together = len(np.unique(turned[0, 0])) == 1  # each channel of the next layer reads one
    kept = torch.tensor([True, True, False, True, True, True])
    if not together:
        assert groups(model, x).group("0").frozen
        return
    reads = model.get_submodule("2").get_parameter("weight").detach().clone()
    shrunk = shrink(model, x, {"0": kept}).model
    stay = np.flatnonzero(turned[0, :, 0, 0] != 2)
    assert torch.equal(shrunk.get_submodule("2").get_parameter("weight"), reads[:, stay])


class _Unpooled(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.first, self.last = conv(3, 6, 1), conv(6, 2, 1)
        self.pool = {2: nn.MaxPool2d, 3: nn.MaxPool3d}[rank](2, return_indices=True)
        self.back = {2: nn.MaxUnpool2d, 3: nn.MaxUnpool3d}[rank](2)

    def forward(self, x: Tensor) -> Tensor:
        """Maxima taken, and put back to where they were."""
        values, places = self.pool(self.first(x).relu())
        return self.last(self.back(values, places))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rank", [2, 3])
def test_maxima_go_back_to_their_places(rank: int) -> None:
    """Cut by hand: the channels that stay compute what they did."""
    model = _Unpooled(rank).eval()
    x = torch.randn(2, 3, *[6] * rank, generator=torch.Generator().manual_seed(0))
    by_hand = _Unpooled(rank).eval()
    kept = torch.tensor([True, True, False, True, False, True])
    for name, parameter in model.named_parameters():
        axis = 1 if name == "last.weight" else 0
        part = parameter.detach() if name == "last.bias" else parameter.detach().moveaxis(axis, 0)[kept]
        by_hand.get_parameter(name).data = part if name == "last.bias" else part.moveaxis(0, axis)
    shrunk = shrink(model, x, {"first": kept}).model
    assert [tuple(each.shape) for each in shrunk.parameters()] == [
        tuple(each.shape) for each in by_hand.parameters()
    ]
    assert torch.allclose(shrunk(x), by_hand(x), atol=1e-6)


def test_where_maxima_were_is_no_zero() -> None:
    """A channel of zeros has maxima at places that are none: a sum over channels of places keeps them all."""

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(9, 2)
            self.pool = nn.MaxPool2d(2, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.pool(self.conv(x).relu())[1].float().sum(1).flatten(1))  # type: ignore[no-any-return]

    (group, *_) = groups(Places(), torch.randn(2, 1, 8, 8)).groups
    assert group.frozen is not None


class _Spread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Divided by one variance of all numbers, whose correction is given by its place."""
        y = self.first(x)
        return self.last(y / (1 + torch.var(y, False)))  # type: ignore[no-any-return]


def test_a_variance_of_all_numbers_runs_over_what_is_kept() -> None:
    """What stands in the place of the axes is no axis."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    result = shrink(_Spread(), x, {"first": torch.arange(12) > 2})
    assert result.deviation.accepted
    assert result.parameters_after < result.parameters_before


class _Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """All numbers in a row go round."""
        return torch.roll(x, 3)


def test_a_roll_of_all_numbers_stays_as_it_is() -> None:
    """It has no axes whose shifts could change; what lies before it is taken out all the same."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), _Rolled())
    small = shrink(model, torch.randn(3, 8), {"0": torch.arange(6) > 0}).model
    assert small.get_submodule("0").out_features == small.get_submodule("2").in_features == 5


def test_a_group_norm_knows_how_many_channels_it_has() -> None:
    """Where the same offset goes within each group, their number stays."""
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))
    small = shrink(model, torch.randn(2, 3, 6, 6), {"0": torch.tensor([True, False, True, True])}).model
    norm = small.get_submodule("1")
    assert (norm.num_groups, norm.num_channels, len(norm.weight)) == (3, 9, 9)  # type: ignore[arg-type]


class DroppedByOperator(nn.Module):
    """Dropout by the operator that gives its mask, too, which scales what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden, mask = torch.native_dropout(self.first(x).relu(), 0.5, self.training)
        return self.last(hidden * mask)


def test_units_go_through_dropout_that_gives_its_mask() -> None:
    """The proof, in both modes, drops nothing, and all examples are in it."""
    torch.manual_seed(0)
    model, x = DroppedByOperator().eval(), torch.randn(4, 3)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (expected.first.weight, expected.first.bias):
            parameter[[1, 4]] = 0
    result = shrink(model, x, {"first": torch.tensor([True, False, True, True, False, True])})
    assert result.form == "modules"
    assert model.last.in_features == 4
    torch.testing.assert_close(model(x), expected(x))
    with exact():
        model.train()
        assert model(x).shape == (4, 2)
        torch.testing.assert_close(model.double()(x.double()), expected.double().eval()(x.double()))
