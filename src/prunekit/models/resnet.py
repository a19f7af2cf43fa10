"""Residual networks for CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, PositiveInt
from torch import Tensor, nn

from prunekit.errors import InputError, shown
from prunekit.limits import whole
from prunekit.models.common import MAX_LAYERS, draw_he_normal, image_shape, size_of


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, C, H, W) -> (N, width, H / stride, W / stride).

    Where the shape changes, the shortcut is a projection: a 1x1 convolution and its batch norm (option B).
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, after the activation."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + self.shortcut(x))


class ResNet(nn.Module):
    """`conv1`, `bn1`, `act1`; then `stage1` to `stage3`, of (depth - 2) / 6 blocks each; average; `fc`.

    Each later stage halves the image and doubles the channels.
    """

    def __init__(self, input_shape: Sequence[int], outputs: int, depth: int, width: int) -> None:
        super().__init__()
        channels, _, _ = image_shape(input_shape, smallest=4)
        blocks = (_checked_depth(depth) - 2) // 6
        width = size_of("width", width)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.stage1 = _stage(width, width, blocks, stride=1)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, size_of("outputs", outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all initial values again: He normal weights, zero biases, fresh batch norms."""
        draw_he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (N, outputs) for images (N, channels, height, width)."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(self.flatten(self.average(x)))


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(channels, width, stride)
    return nn.Sequential(first, *(ResidualBlock(width, width, stride=1) for _ in range(blocks - 1)))


def _checked_depth(depth: int) -> int:
    if depth < 8 or depth % 6 != 2:
        raise InputError(
            f"the depth of a CIFAR ResNet is 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {shown(depth)}"
        )
    whole("the number of residual blocks, a third of the depth,", depth // 3, 1, MAX_LAYERS)
    return depth


def resnet(
    input_shape: Sequence[int],
    outputs: int,
    *,
    depth: Annotated[int, AfterValidator(_checked_depth)] = 20,
    width: PositiveInt = 16,
) -> ResNet:
    """A residual network in its CIFAR form (He, Zhang, Ren & Sun 2016, arXiv 1512.03385, section 4.2).

    The shortcuts that change the shape are the paper's option B (a 1x1 projection), where its CIFAR networks
    use option A (padding with zeros): B couples the channels through layers that can be seen and pruned, at
    the price of 1 % more parameters (ResNet-20: 272,474 against 269,722).

    Args:
        input_shape: (channels, height, width), at least 4 pixels a side.
        outputs: number of classes.
        depth: number of layers with weights, 6n + 2.
        width: channels of the first stage.

    Raises:
        InputError: if the input is no image or too small, or the depth is not 6n + 2.
    """
    return ResNet(input_shape, outputs, depth, width)


def resnet20(input_shape: Sequence[int], outputs: int) -> ResNet:
    """ResNet-20 of He et al. (2016, arXiv 1512.03385), 272,474 parameters on CIFAR-10; see `resnet`."""
    return resnet(input_shape, outputs, depth=20)
