"""Convolutional networks: LeNet-5 with activations or maxout, a small VGG, residual networks for CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Annotated

import torch
from pydantic import AfterValidator, Field, PositiveInt
from torch import Tensor, nn

from prunekit.errors import InputError, shown
from prunekit.models.mlp import feature_shape
from prunekit.settings import MAX_LAYERS, size_of, sizes_of, whole


def image_shape(input_shape: Sequence[int], *, smallest: int) -> tuple[int, int, int]:
    """(channels, height, width) of an image of at least `smallest` pixels a side."""
    shape = feature_shape(input_shape)
    if len(shape) != 3:
        raise InputError(f"input_shape must be [channels, height, width] for this model, got {list(shape)}")
    channels, height, width = shape
    if min(height, width) < smallest:
        raise InputError(
            f"images must be at least {smallest} x {smallest} for this model, got {height} x {width}"
        )
    return channels, height, width


def draw_he_normal(model: nn.Module) -> None:
    """Draw all initial values of `model` (He et al. 2015, arXiv 1502.01852, equation 10).

    Weights from N(0, 2 / fan_in), biases zero; batch norms go back to scale 1, shift 0 and fresh statistics.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()


KERNEL = 5
SMALLEST = 16  # two 5x5 convolutions and two halvings leave one pixel of 16


class LeNet5(nn.Module):
    """LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998) in Caffe's form 20-50-500: 430,500 weights on MNIST.

    `conv1` 5x5 (20), `pool1`, `conv2` 5x5 (50), `pool2`, `fc1` (500), `act1`, `fc2`. As in Caffe's definition
    there is **no** activation after the convolutions: the maximum pooling is their only non-linearity, and
    the one ReLU (`act1`) follows `fc1`.

    Args:
        input_shape: (channels, height, width), at least 16 pixels a side.
        outputs: number of classes.

    Raises:
        InputError: if the input is no image or too small.
    """

    def __init__(self, input_shape: Sequence[int], outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape(input_shape, smallest=SMALLEST)
        self.conv1 = nn.Conv2d(channels, 20, KERNEL)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, KERNEL)
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(50 * remaining(height) * remaining(width), 500)
        self.act1 = nn.ReLU()
        self.fc2 = nn.Linear(500, size_of("outputs", outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all initial values again: Caffe's "xavier", uniform in +-sqrt(3 / fan_in); biases zero."""
        for layer in self.children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # Caffe's filler divides by the fan-in alone, unlike `nn.init.xavier_uniform_`.
                bound = sqrt(3 / layer.weight[0].numel())
                nn.init.uniform_(layer.weight, -bound, bound)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (N, outputs) for images (N, channels, height, width)."""
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        x = self.act1(self.fc1(self.flatten(x)))
        return self.fc2(x)


def remaining(side: int) -> int:
    """Pixels of one side that are left after both convolutions and poolings."""
    for _ in range(2):
        side = (side - KERNEL + 1) // 2
    return side


class Maxout(nn.Module):
    """The maximum over groups of `pieces` neighbouring outputs of a linear layer or a convolution.

    Goodfellow et al. 2013, arXiv 1302.4389. A piece whose weights and bias are all exactly zero takes no part
    in the maximum: that is what a mask makes of a removed one, so a masked network computes what the network
    without these pieces does. Where all pieces of a unit are zero it gives 0.

    Attributes:
        layer: what makes the pieces, `units` x `pieces` of them.
        units: the numbers handed on per position.
    """

    def __init__(self, layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, pieces: int) -> None:
        super().__init__()
        outputs = len(layer.weight)
        if pieces < 1 or outputs % pieces:
            raise InputError(f"a maxout of {pieces} pieces does not divide {outputs} outputs")
        self.layer = layer
        self.units = outputs // pieces

    @property
    def pieces(self) -> int:
        """How many pieces each unit has."""
        layer = self.layer
        return (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels) // self.units

    @property
    def dim(self) -> int:
        """Where the pieces lie in what `split` gives: last for a linear layer, else behind the units."""
        return -1 if isinstance(self.layer, nn.Linear) else 2

    def reset_parameters(self) -> None:
        """Draw all initial values again."""
        self.layer.reset_parameters()

    def present(self) -> Tensor:
        """(units, pieces) flags: False for pieces that are all zero."""
        present = (self.layer.weight.detach().flatten(1) != 0).any(1)
        if self.layer.bias is not None:
            present = present | (self.layer.bias.detach() != 0)
        return present.view(self.units, self.pieces)

    def split(self, outputs: Tensor) -> Tensor:
        """The layer's outputs with the dimension of features split into (units, pieces).

        Pieces that take no part are minus infinity, unless no piece of their unit does.
        """
        present = self.present()
        absent = ~present & present.any(1, keepdim=True)
        positions = () if isinstance(self.layer, nn.Linear) else (1,) * len(self.layer.kernel_size)
        found = torch.unflatten(outputs, 1 if positions else -1, (self.units, self.pieces))
        return found.masked_fill(absent.view(self.units, self.pieces, *positions), -torch.inf)

    def forward(self, x: Tensor) -> Tensor:
        """(N, units, ...) for what the layer takes."""
        outputs = self.layer(x)
        return self.split(outputs).amax(self.dim) if self.pieces > 1 else outputs


class MaxoutLeNet5(nn.Module):
    """LeNet-5 with maxout (Rueda, Grzeszick & Fink 2017): 20, 52 and 256 pieces, 4 to a unit.

    `conv1` 5x5 (20 pieces), `pool1`, `conv2` 5x5 (52), `pool2`, `fc1` (256), `dropout`, `fc2`, of which
    `conv1`, `conv2` and `fc1` are maxout layers.

    Args:
        input_shape: (channels, height, width), at least 16 pixels a side.
        outputs: number of classes.
        pieces: neurons that share a unit; 1, 2 or 4.
        dropout: before the last layer, while training.

    Raises:
        InputError: if the input is no image or too small, or the pieces do not divide the layers.
    """

    def __init__(
        self, input_shape: Sequence[int], outputs: int, *, pieces: PositiveInt = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, height, width = image_shape(input_shape, smallest=SMALLEST)
        self.conv1 = Maxout(nn.Conv2d(channels, 20, KERNEL), pieces)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = Maxout(nn.Conv2d(self.conv1.units, 52, KERNEL), pieces)
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = Maxout(nn.Linear(self.conv2.units * remaining(height) * remaining(width), 256), pieces)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(self.fc1.units, size_of("outputs", outputs))

    def reset_parameters(self) -> None:
        """Draw all initial values again: PyTorch's own for each layer."""
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (N, outputs) for images (N, channels, height, width)."""
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        return self.fc2(self.dropout(self.fc1(self.flatten(x))))


_Block = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
_Widths = Annotated[tuple[_Block, ...], Field(min_length=1)]


class LayersInTurn(nn.Module):
    """A network for images that runs its layers one after the other, drawn as He et al. draw them."""

    def reset_parameters(self) -> None:
        """Draw all initial values again: He normal weights, zero biases, fresh batch norms."""
        draw_he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (N, outputs) for images (N, channels, height, width)."""
        for layer in self.children():
            x = layer(x)
        return x


class VGGSmall(LayersInTurn):
    """A VGG-like network (Simonyan & Zisserman 2015, arXiv 1409.1556) of six convolutions for 32 x 32 images.

    Blocks of 3x3 convolutions, each block ended by a 2x2 maximum pooling; then global average and `fc`.
    Layers are named along the depth: `conv1`, `bn1`, `act1`, `conv2`, ..., and `pool1` after the first block.

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

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        widths: _Widths = ((64, 64), (128, 128), (256, 256)),
    ) -> None:
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


def _checked_depth(depth: int) -> int:
    if depth < 8 or depth % 6 != 2:
        raise InputError(
            f"the depth of a CIFAR ResNet is 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {shown(depth)}"
        )
    whole("the number of residual blocks, a third of the depth,", depth // 3, 1, MAX_LAYERS)
    return depth


class ResNet(nn.Module):
    """A residual network in its CIFAR form (He, Zhang, Ren & Sun 2016, arXiv 1512.03385, section 4.2).

    `conv1`, `bn1`, `act1`; then `stage1` to `stage3`, of (depth - 2) / 6 blocks each; average; `fc`. Each
    later stage halves the image and doubles the channels. The shortcuts that change the shape are the paper's
    option B (a 1x1 projection), where its CIFAR networks use option A (padding with zeros): B couples the
    channels through layers that can be seen and pruned, at the price of 1 % more parameters (ResNet-20:
    272,474 against 269,722).

    Args:
        input_shape: (channels, height, width), at least 4 pixels a side.
        outputs: number of classes.
        depth: number of layers with weights, 6n + 2.
        width: channels of the first stage.

    Raises:
        InputError: if the input is no image or too small, or the depth is not 6n + 2.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        depth: Annotated[int, AfterValidator(_checked_depth)] = 20,
        width: PositiveInt = 16,
    ) -> None:
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


def resnet20(input_shape: Sequence[int], outputs: int) -> ResNet:
    """ResNet-20 of He et al. (2016, arXiv 1512.03385), 272,474 parameters on CIFAR-10; see `resnet`."""
    return ResNet(input_shape, outputs, depth=20)
