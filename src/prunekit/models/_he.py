"""He et al.'s initial values for networks of convolutions, batch norms and ReLUs."""

from __future__ import annotations

from torch import nn


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
