"""LeNet-5 in the form that Caffe ships and the pruning literature uses."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from torch import Tensor, nn

from prunekit.models._sizes import image_shape, output_count

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
        self.fc2 = nn.Linear(500, output_count(outputs))
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
