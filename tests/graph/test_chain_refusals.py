"""What is no chain: the message names the layer and says why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from prunekit.errors import ModelError
from prunekit.graph import chain_of
from prunekit.models import resnet20
from refused_nets import REFUSED, Net, TwoInputs

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Transposed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).transpose(0, 1))


@pytest.mark.parametrize("given", [None, X], ids=["made up", "given"])
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_connections(kind: type[Net], given: Tensor | None) -> None:
    with pytest.raises(ModelError) as caught:
        chain_of(kind(), given)
    assert str(caught.value).startswith(f"layer 'a' is no link of a chain: {REFUSED[kind]}")
    assert "\n" not in str(caught.value)


def test_swapped_examples_and_units() -> None:
    with pytest.raises(ModelError) as caught:
        chain_of(Transposed(), X)
    why = "its output feeds 'transpose()', which is none of the operations that a chain can hold"
    assert str(caught.value).startswith(f"layer 'a' is no link of a chain: {why}")
    assert "\n" not in str(caught.value)


def test_two_inputs() -> None:
    with pytest.raises(ModelError, match="a chain has one input, the model's output is computed from x, y"):
        chain_of(TwoInputs())
    with pytest.raises(ModelError, match="a chain has one input, the model's output is computed from x, y"):
        chain_of(TwoInputs(), (X, X))


def test_resnet_names_the_first_layer_that_feeds_a_sum() -> None:
    with pytest.raises(ModelError, match=r"layer 'conv1' .* the sum 'add' together with 'stage1.0.conv2'"):
        chain_of(resnet20((3, 32, 32), 10))


def sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def test_layer_registered_twice() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(ModelError, match="layer '0' is no link of a chain: it is used twice"):
        chain_of(sequential(layer, nn.ReLU(), layer))


def test_tied_weights() -> None:
    model = sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(ModelError, match=r"layer '0' .* its weight is tied with 2.weight"):
        chain_of(model)


def test_weights_on_the_same_memory() -> None:
    model = sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ModelError, match=r"layer '0' .* its weight is tied with 2.weight"):
        chain_of(model)


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (nn.LayerNorm(3), "feeds '1', which has statistics that mix units"),
        (nn.GroupNorm(3, 3), "feeds '1', which has statistics that mix units"),
        (nn.Softmax(dim=1), "feeds '1', which mixes units"),
        (
            nn.MaxPool1d(3, 1, 1),
            "'2' does not read its units one by one, and it is pooled over at 'max_pool1d' in '1'",
        ),
        (nn.PReLU(3), "its slopes differ between units"),
        (nn.Softmin(dim=1), "its output feeds '1', which is none of the operations that a chain can hold"),
        (nn.BatchNorm1d(6), "'2' does not read its units one by one, .* at 'batch_norm' in '1'"),
        (nn.Flatten(-1), "does not flatten all but the first dimension"),
        (parametrizations.weight_norm(nn.Linear(3, 3)), "it is parametrized"),
        (prune.identity(nn.Linear(3, 3), "weight"), "its weight is no plain parameter"),
        (nn.LazyLinear(3), "has no shape yet"),
    ],
    ids=str,
)
def test_layers_between(between: nn.Module, why: str) -> None:
    with pytest.raises(ModelError, match=why.replace("(", r"\(")) as caught:
        chain_of(sequential(nn.Linear(3, 3), between, nn.Linear(3, 3)).double())
    assert "\n" not in str(caught.value)


def test_one_slope_is_pointwise() -> None:
    assert chain_of(sequential(nn.Linear(3, 3), nn.PReLU(), nn.Linear(3, 3))).groups


def test_norms_and_softmax_at_the_ends_touch_no_group() -> None:
    model = sequential(
        nn.LayerNorm(3), nn.Linear(3, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.LogSoftmax(dim=1)
    )
    assert [group.name for group in chain_of(model).groups] == ["1"]


def test_positions_that_are_read_in_place_of_units() -> None:
    with pytest.raises(ModelError, match=r"layer '0' .* '1' does not read its units one by one"):
        chain_of(sequential(nn.Conv1d(1, 3, 1), nn.Linear(3, 3)))


def test_grouped_convolutions_refuse_only_what_they_touch() -> None:
    model = sequential(
        nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)
    )
    chain = chain_of(model)
    assert [group.name for group in chain.groups] == ["2"]
    with pytest.raises(ModelError, match="the units of '0' cannot be removed: '1' reads them in 4 groups"):
        chain.group("0")
    with pytest.raises(
        ModelError, match="the units of '1' cannot be removed: it is a convolution in 4 groups"
    ):
        chain.group("1")


def test_own_forward() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flip(1)

    with pytest.raises(ModelError, match=r"'0' \(Odd\) .* computes something of its own in forward"):
        chain_of(sequential(Odd(3, 3), nn.Linear(3, 3)))


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.a(x)
        return self.b(x)


def test_branch_on_the_data_names_the_line() -> None:
    model = Branching()
    place = r"inputs decide what is computed, at line \d+ of test_chain_refusals.py: if x.sum\(\) > 0:"
    for given in (None, X):
        with pytest.raises(ModelError, match=place):
            chain_of(model, given)
    assert model.training


def test_nothing_to_prune() -> None:
    with pytest.raises(ModelError, match="the model has no linear or convolution layer"):
        chain_of(sequential(nn.Flatten(), nn.ReLU()))


def test_a_module_that_no_input_fits_is_named_with_what_it_says() -> None:
    with pytest.raises(ModelError, match=r"give example_inputs .*Bilinear.* missing 1 .* argument: 'input2'"):
        chain_of(sequential(nn.Linear(3, 3), nn.Bilinear(3, 3, 3), nn.Linear(3, 3)))


def test_a_subclass_of_an_activation_is_what_its_forward_does() -> None:
    class Centred(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(1, keepdim=True))

    with pytest.raises(ModelError, match=r"layer '0' .* the difference 'sub'"):
        chain_of(sequential(nn.Linear(3, 3), Centred(), nn.Linear(3, 3)))
