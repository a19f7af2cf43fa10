"""LeNet-5 in the form that Caffe ships, with activations or maxout, and the fully connected LeNet-300-100."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from pydantic import PositiveInt
from torch import Tensor, nn

from prunekit.maxout import Maxout
from prunekit.models.common import image_shape, size_of
from prunekit.models.mlp import MLP

KERNEL = 5
SMALLEST = 16  # two 5x5 convolutions and two halvings leave one pixel of 16


class LeNet5(nn.Module):
    """conv1 5x5 (20), pool1, conv2 5x5 (50), pool2, fc1 (500), act1, fc2.

    As in Caffe's definition there is **no** activation after the convolutions: the maximum pooling is their
    only non-linearity, and the one ReLU (`act1`) follows `fc1`.
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


def lenet5(input_shape: Sequence[int], outputs: int) -> LeNet5:
    """LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998) in Caffe's form 20-50-500: 430,500 weights on MNIST.

    Args:
        input_shape: (channels, height, width), at least 16 pixels a side.
        outputs: number of classes.

    Raises:
        InputError: if the input is no image or too small.
    """
    return LeNet5(input_shape, outputs)


class MaxoutLeNet5(nn.Module):
    """conv1 5x5 (20 pieces), pool1, conv2 5x5 (52), pool2, fc1 (256), dropout, fc2.

    `conv1`, `conv2` and `fc1` are maxout layers.
    """

    def __init__(
        self, input_shape: Sequence[int], outputs: int, pieces: int = 4, dropout: float = 0.0
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


def maxout_lenet5(
    input_shape: Sequence[int], outputs: int, *, pieces: PositiveInt = 4, dropout: float = 0.0
) -> MaxoutLeNet5:
    """LeNet-5 with maxout (Rueda, Grzeszick & Fink 2017): 20, 52 and 256 pieces, 4 to a unit.

    Args:
        input_shape: (channels, height, width), at least 16 pixels a side.
        outputs: number of classes.
        pieces: neurons that share a unit; 1, 2 or 4.
        dropout: before the last layer, while training.

    Raises:
        InputError: if the input is no image or too small, or the pieces do not divide the layers.
    """
    return MaxoutLeNet5(input_shape, outputs, pieces, dropout)


class LeNet300100(MLP):
    """`fc1` (300), `act1`, `fc2` (100), `act2`, `fc3`, with ReLU; Glorot normal weights and zero biases."""

    def __init__(self, input_shape: Sequence[int], outputs: int) -> None:
        super().__init__(input_shape, outputs, hidden=(300, 100), activation="relu")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all initial values again: weights from N(0, 2 / (fan_in + fan_out)), biases zero."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)


def lenet_300_100(input_shape: Sequence[int], outputs: int) -> LeNet300100:
    """LeNet-300-100 (LeCun, Bottou, Bengio & Haffner 1998): 266,200 weights and 410 biases on MNIST.

    Activation and initial values are those of the lottery ticket hypothesis (Frankle & Carbin 2019,
    arXiv 1803.03635): ReLU and Gaussian Glorot initialisation.

    Raises:
        InputError: for a size below 1.
    """
    return LeNet300100(input_shape, outputs)
