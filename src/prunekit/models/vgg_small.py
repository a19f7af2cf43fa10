"""A small VGG for CIFAR-10, with batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.models.common import draw_he_normal, image_shape, size_of, sizes_of

_Block = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
_Widths = Annotated[tuple[_Block, ...], Field(min_length=1)]


class VGGSmall(nn.Module):
    """Blocks of 3x3 convolutions, each block ended by a 2x2 maximum pooling; then global average and `fc`.

    Layers are named along the depth: `conv1`, `bn1`, `act1`, `conv2`, ..., and `pool1` after the first block.
    """

    def __init__(self, input_shape: Sequence[int], outputs: int, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        if not widths or not all(widths):
            raise InputError(f"widths must name at least one convolution for each block, got {widths!r}")
        channels, _, _ = image_shape(input_shape, smallest=2 ** len(widths))
        depth = 0
        for block, block_widths in enumerate(widths, start=1):
            for width in sizes_of("widths", block_widths):
                depth += 1
                # The batch norm's shift takes the place of the convolution's bias.
                self.add_module(f"conv{depth}", nn.Conv2d(channels, width, 3, padding=1, bias=False))
                self.add_module(f"bn{depth}", nn.BatchNorm2d(width))
                self.add_module(f"act{depth}", nn.ReLU())
                channels = width
            self.add_module(f"pool{block}", nn.MaxPool2d(2))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, size_of("outputs", outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all initial values again: He normal weights, zero biases, fresh batch norms."""
        draw_he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (N, outputs) for images (N, channels, height, width)."""
        for layer in self.children():
            x = layer(x)
        return x


def vgg_small(
    input_shape: Sequence[int], outputs: int, *, widths: _Widths = ((64, 64), (128, 128), (256, 256))
) -> VGGSmall:
    """A VGG-like network (Simonyan & Zisserman 2015, arXiv 1409.1556) of six convolutions for 32 x 32 images.

    As usual on CIFAR-10, batch norms follow the convolutions and one linear layer replaces the three large
    ones (Li et al. 2017, arXiv 1608.08710); averaging over positions before it is ours, so that the weights
    do not depend on the size of the image. 1,148,874 parameters on CIFAR-10.

    Args:
        input_shape: (channels, height, width), at least 2 ** blocks pixels a side.
        outputs: number of classes.
        widths: output channels of each convolution, block by block.

    Raises:
        InputError: if the input is no image or too small, or a block is empty.
    """
    return VGGSmall(input_shape, outputs, widths)
