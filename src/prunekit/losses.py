"""The errors that networks are trained and judged by."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> a scalar, the mean over the examples."""


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error summed over the outputs, averaged over the examples; class numbers become one-hot."""
    if not targets.is_floating_point():
        targets = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    if targets.shape != outputs.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
    return (outputs - targets).square().flatten(1).sum(1).mean()


LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "squared_error": squared_error}


def default_loss(targets: Tensor) -> str:
    """Class numbers are judged by cross-entropy, real values by the squared error."""
    return "squared_error" if targets.is_floating_point() else "cross_entropy"
