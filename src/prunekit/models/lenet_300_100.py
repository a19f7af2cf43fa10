"""LeNet-300-100, the fully connected network that the pruning literature compares on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prunekit.models.mlp import MLP


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
