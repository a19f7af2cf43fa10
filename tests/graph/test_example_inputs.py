"""Inputs made up for a network: it takes them, and they have the shape that its first layer reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph import capture, record
from prunekit.graph.capture import made_up_inputs
from prunekit.models import LeNet5, LeNet300100, VGGSmall, resnet20


class WrittenDown(nn.Module):
    """The view of tutorials, with the numbers in it."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.left = (side - 4) // 2
        self.out = nn.Linear(6 * self.left**2, 3)
        self.conv = nn.Conv2d(1, 6, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv(x * scale)), 2)
        return self.out(x.view(-1, 6 * self.left * self.left))


class FlattensImages(nn.Module):
    """Linear layers only, but images are taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3 * 16 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, high, wide = x.shape
        return self.out(x.reshape(batch, channels * high * wide))


class Backward(nn.Module):
    """Its layers are registered in another order than they are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(5, 2), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def oblong() -> nn.Module:
    """For spectrograms of 40 x 101."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 19 * 49, 4))


def audio() -> nn.Module:
    """For 16,000 samples."""
    return nn.Sequential(nn.Conv1d(1, 2, 80, 4), nn.MaxPool1d(4), nn.Flatten(), nn.Linear(2 * 995, 4))


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet_300_100": (lambda: LeNet300100((1, 28, 28), 10), (784,)),
    "lenet5": (lambda: LeNet5((1, 28, 28), 10), (1, 28, 28)),
    "lenet5 for colours": (lambda: LeNet5((3, 32, 32), 10), (3, 32, 32)),
    "any side": (lambda: VGGSmall((3, 16, 16), 10, widths=((8,), (12,))), (3, 28, 28)),
    "residual": (lambda: resnet20((3, 32, 32), 10), (3, 28, 28)),
    "one layer": (lambda: nn.Linear(3, 2), (3,)),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 4)), (2, 3, 3)),
    "layer norm first": (lambda: nn.Sequential(nn.LayerNorm((5, 3)), nn.Flatten(), nn.Linear(15, 4)), (5, 3)),
    "pooling first": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 4)), (3, 8, 8)),
    "volumes": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(2 * 27, 4)),
        (1, 8, 8, 8),
    ),
    "numbers written down": (lambda: WrittenDown(37), (1, 36, 36)),
    "images taken apart": (FlattensImages, (3, 16, 16)),
    "another order": (Backward, (7,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_that_the_first_layer_reads(name: str) -> None:
    build, expected = SHAPES[name]
    model = build()
    (given,) = made_up_inputs(model)
    assert tuple(given.shape[1:]) == expected
    assert model(torch.randn(given.shape)).shape[0] == len(given) == 2
    assert model.training


@pytest.mark.parametrize(("build", "inputs"), [(oblong, (1, 40, 101)), (audio, (1, 16000))])
def test_sides_with_which_the_first_linear_layer_gets_as_many_numbers(
    build: Callable[[], nn.Module], inputs: tuple[int, ...]
) -> None:
    model = build()
    (given,) = made_up_inputs(model)
    assert model(torch.randn(given.shape)).shape == model(torch.randn(2, *inputs)).shape == (2, 4)


def test_the_type_is_that_of_the_weights() -> None:
    (given,) = made_up_inputs(nn.Sequential(nn.Linear(3, 2), nn.ReLU()).to(torch.bfloat16))
    assert given.dtype == torch.bfloat16


def test_what_nothing_fits_is_refused_with_what_was_tried_and_what_was_said() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 5:
                raise ValueError("five are wanted")
            return self.out(x[:, 1:])

    with pytest.raises(ModelError) as caught:
        made_up_inputs(Odd())
    text = str(caught.value)
    assert text.startswith(
        "no inputs that the model takes could be made up, tried are (2, 4), (2, 1, 28, 28)"
    )
    assert "give example_inputs (the first: five are wanted, at line" in text
    assert 'of test_example_inputs.py: raise ValueError("five are wanted"))' in text


def test_the_network_is_recorded_once_where_the_first_attempt_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: object) -> object:
        calls.append(args)
        return record.recorded(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(capture, "recorded", counted)
    made_up_inputs(LeNet5((1, 28, 28), 10))
    assert len(calls) == 1
