"""A freshly built network takes the sizes of a saved one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prunekit.errors import ModelError
from prunekit.models import lenet5, resnet20, vgg_small
from prunekit.structure import INPUT, chain_of, resize_to, shrink


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("inputs", [False, True])
def test_loads_what_was_shrunk(tmp_path: Path, inputs: bool) -> None:
    def build() -> nn.Module:
        return vgg_small((4, 8, 8), 3, widths=((6,), (4, 5))).eval()

    model = build()
    x = torch.randn(3, 4, 8, 8)
    chain = chain_of(model, inputs=inputs)
    kept = {group.name: torch.arange(group.units) % 2 == 1 for group in chain.groups}
    result = shrink(model, kept, x)
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    fresh = build()
    state = load_file(tmp_path / "state.safetensors")
    resize_to(fresh, {name: tuple(value.shape) for name, value in state.items()})
    fresh.load_state_dict(state)
    given = x if result.kept_inputs is None else x[:, result.kept_inputs]
    assert (INPUT in kept) == inputs
    assert torch.equal(fresh(given), model(given))
    assert [m.extra_repr() for m in fresh.modules()] == [m.extra_repr() for m in model.modules()]


def test_same_shapes_need_no_chain() -> None:
    model = resnet20((3, 8, 8), 3)
    weight = model.conv1.weight
    resize_to(model, shapes(model))
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
    model = lenet5((1, 28, 28), 10)
    before = dict(model.named_parameters())
    with pytest.raises(ModelError, match=why):
        resize_to(model, {**shapes(model), **change})
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model.conv1.out_channels == 20


def test_missing_entry() -> None:
    model = lenet5((1, 28, 28), 10)
    rest = shapes(model)
    del rest["fc1.bias"]
    with pytest.raises(ModelError, match=r"the shapes have no 'fc1.bias'"):
        resize_to(model, rest)


def test_no_chain() -> None:
    model = resnet20((3, 8, 8), 3)
    with pytest.raises(ModelError, match="layer 'conv1' is no link of a chain"):
        resize_to(model, {**shapes(model), "fc.weight": (3, 63)})
