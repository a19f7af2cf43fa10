"""A freshly built network takes the sizes of a saved one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prunekit.errors import ModelError
from prunekit.graph import INPUT, chain_of, restore_sizes, shrink
from prunekit.models import LeNet5, VGGSmall, resnet20
from small_nets import mlp


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("inputs", [False, True])
def test_loads_what_was_shrunk(tmp_path: Path, inputs: bool) -> None:
    def build() -> nn.Module:
        return VGGSmall((4, 8, 8), 3, widths=((6,), (4, 5))).eval()

    model = build()
    x = torch.randn(3, 4, 8, 8)
    chain = chain_of(model, inputs=inputs)
    kept = {group.name: torch.arange(group.units) % 2 == 1 for group in chain.groups}
    result = shrink(model, x, kept)
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    fresh = build()
    state = load_file(tmp_path / "state.safetensors")
    restore_sizes(fresh, {name: tuple(value.shape) for name, value in state.items()})
    fresh.load_state_dict(state)
    given = x if result.kept_inputs is None else x[:, result.kept_inputs]
    assert (INPUT in kept) == inputs
    assert torch.equal(fresh(given), model(given))
    assert [m.extra_repr() for m in fresh.modules()] == [m.extra_repr() for m in model.modules()]


def test_same_shapes_need_no_chain() -> None:
    model = resnet20((3, 8, 8), 3)
    weight = model.conv1.weight
    restore_sizes(model, shapes(model))
    assert model.conv1.weight is weight


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"conv1.weight": (21, 1, 5, 5), "conv1.bias": (21,)}, "it cannot be made"),
        ({"conv1.weight": (0, 1, 5, 5), "conv1.bias": (0,)}, "it cannot be made"),
        ({"conv1.weight": (20, 1, 3, 3)}, r"conv1.weight .* has shape \(20, 1, 3, 3\), which removing units"),
        ({"conv1.weight": (10, 1, 5, 5)}, r"would be \(10,\)|which removing units does not give"),
        (
            {"fc2.weight": (9, 500), "fc2.bias": (9,)},
            r"fc2\.(weight|bias) .*which removing units does not give",
        ),
        ({"fc1.weight": (500, 799)}, "which removing units does not give"),
        ({"fc3.weight": (1, 1)}, "the model has no 'fc3.weight'"),
    ],
)
def test_shapes_that_removal_does_not_give(change: dict[str, tuple[int, ...]], why: str) -> None:
    model = LeNet5((1, 28, 28), 10)
    before = dict(model.named_parameters())
    with pytest.raises(ModelError, match=why):
        restore_sizes(model, {**shapes(model), **change})
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model.conv1.out_channels == 20


def test_missing_entry() -> None:
    model = LeNet5((1, 28, 28), 10)
    rest = shapes(model)
    del rest["fc1.bias"]
    with pytest.raises(ModelError, match=r"the shapes have no 'fc1.bias'"):
        restore_sizes(model, rest)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"fc.weight": (3, 63)},
            "fc.weight .* does not give: it reads 64 inputs behind stage3",
        ),
        ({"stage1.0.conv2.weight": (15, 16, 3, 3), "stage1.0.bn2": (15,)}, r"its units meet 1[56] of"),
        ({"stage1.1.conv1.weight": (9, 16, 3, 3)}, r"bn1.weight .*: it reads 9 inputs behind stage1.1.conv1"),
        ({"stage1.1.bn1.running_var": (9,)}, r"running_var .*: num_features is 16 after stage1.1.bn1.weight"),
    ],
)
def test_layers_that_do_not_fit_in_a_network_with_shortcuts(
    change: dict[str, tuple[int, ...]], why: str
) -> None:
    model = resnet20((3, 8, 8), 3)
    wanted = shapes(model)
    for name, shape in change.items():
        names = [name] if name in wanted else [each for each in wanted if each.startswith(f"{name}.")]
        wanted.update({each: shape for each in names if wanted[each]})
    before = dict(model.named_parameters())
    with pytest.raises(ModelError, match=why):
        restore_sizes(model, wanted)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_attributes_that_do_not_fit() -> None:
    model = mlp(6, 5, 3)
    wanted = {**shapes(model), "0.weight": (4, 6), "0.bias": (4,), "2.weight": (3, 4)}
    with pytest.raises(ModelError, match=r"0.weight .*which removing units does not give: out_features is 3"):
        restore_sizes(model, wanted, {"0": {"out_features": 3}})
    restore_sizes(model, wanted, {"0": {"out_features": 4}})
    assert (model[0].out_features, model[2].in_features) == (4, 4)


class Counting(nn.Module):
    """Its forward cannot be followed on symbols, and leaves something behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)
        self.seen: list[torch.Tensor] = []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        self.calls.add_(1)
        return self.second(self.first(x)) if x.sum() > 0 else self.second(-self.first(x))


def test_what_cannot_be_followed_is_taken_as_it_is() -> None:
    model = Counting()
    undo = restore_sizes(model, {**shapes(model), "first.weight": (3, 4), "first.bias": (3,)})
    assert (model.first.out_features, model.second.in_features) == (3, 6)
    assert model.seen == []
    assert not model.calls
    undo()
    assert model.first.weight.shape == (6, 4)
