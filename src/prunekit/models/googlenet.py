"""A small GoogLeNet for 32 x 32 images: inception blocks behind a stem with local response normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.models.convnets import LayersInTurn, image_shape
from prunekit.settings import size_of, sizes_of

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=6, max_length=6)]
"""Of an inception block: the 1x1 branch, reduction and 3x3 convolution, reduction and 5x5 convolution, and
the projection behind the pooling."""


def convolution(channels: int, width: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the extent, its batch norm and its activation: `conv`, `bn`, `act`."""
    layers = nn.Sequential()
    # the batch norm's shift takes the place of the convolution's bias
    layers.add_module("conv", nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False))
    layers.add_module("bn", nn.BatchNorm2d(width))
    layers.add_module("act", nn.ReLU())
    return layers


class Inception(nn.Module):
    """Four branches beside one another: (N, C, H, W) -> (N, sum of their widths, H, W).

    `one`: 1x1; `three`: 1x1 and 3x3; `five`: 1x1 and 5x5; `pool`: maximum pooling and 1x1. Szegedy et al.
    2015, figure 2b.
    """

    def __init__(self, channels: int, widths: Widths) -> None:
        super().__init__()
        one, reduce_three, three, reduce_five, five, project = sizes_of("widths", widths)
        self.one = convolution(channels, one, 1)
        self.three = nn.Sequential(
            convolution(channels, reduce_three, 1), convolution(reduce_three, three, 3)
        )
        self.five = nn.Sequential(convolution(channels, reduce_five, 1), convolution(reduce_five, five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(channels, project, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of the branches, in the order of the channels."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class GoogLeNetSmall(LayersInTurn):
    """A small GoogLeNet (Szegedy et al. 2015, arXiv 1409.4842) for 32 x 32 images.

    As in the paper the stem is `conv1`, `pool1`, `norm1`, `conv2` (1x1), `conv3`, `norm2`, `pool2`, the norms
    being local response normalisation; `block1`, `block2`, a pooling, then `block3`, global average and `fc`.
    Three blocks in place of nine, narrower, and 3x3 convolutions with stride 1 at the beginning, fit it to
    small images; batch norms (Ioffe & Szegedy 2015, arXiv 1502.03167) train it without auxiliary heads.

    Args:
        input_shape: (channels, height, width), at least 8 pixels a side.
        outputs: number of classes.
        stem: channels of the three convolutions of the stem.
        blocks: widths of each inception block: 1x1, reduction for 3x3, 3x3, reduction for 5x5, 5x5, and
            behind the pooling.

    Raises:
        InputError: if the input is no image or too small, or a width is no whole number above 0.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        stem: Annotated[tuple[PositiveInt, ...], Field(min_length=3, max_length=3)] = (16, 16, 48),
        blocks: Annotated[tuple[Widths, ...], Field(min_length=3, max_length=3)] = (
            (24, 24, 32, 8, 16, 16),
            (32, 32, 48, 8, 24, 24),
            (48, 48, 96, 16, 32, 32),
        ),
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape(input_shape, smallest=8)
        if len(stem) != 3 or len(blocks) != 3 or any(len(each) != 6 for each in blocks):
            raise InputError(f"stem needs 3 widths and blocks 3 times 6, got {stem!r} and {blocks!r}")
        first, second, third = sizes_of("stem", stem)
        self.conv1 = convolution(channels, first, 3)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm1 = nn.LocalResponseNorm(5)
        self.conv2 = convolution(first, second, 1)
        self.conv3 = convolution(second, third, 3)
        self.norm2 = nn.LocalResponseNorm(5)
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.block1 = Inception(third, blocks[0])
        self.block2 = Inception(_width(blocks[0]), blocks[1])
        self.pool3 = nn.MaxPool2d(3, stride=2, padding=1)
        self.block3 = Inception(_width(blocks[1]), blocks[2])
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(_width(blocks[2]), size_of("outputs", outputs))
        self.reset_parameters()


def _width(widths: Widths) -> int:
    """The channels that a block gives."""
    one, _, three, _, five, project = widths
    return one + three + five + project
