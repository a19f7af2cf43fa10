"""LeNet-5 with maxout in place of its activations."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt
from torch import Tensor, nn

from prunekit.maxout import Maxout
from prunekit.models._sizes import image_shape, output_count
from prunekit.models.lenet5 import KERNEL, SMALLEST, remaining


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
        self.fc2 = nn.Linear(self.fc1.units, output_count(outputs))

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
