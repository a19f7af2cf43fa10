"""Standardisation: subtract the mean, divide by the standard deviation, both of the training part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """The mean and the standard deviation of each feature of a table or each channel of images.

    Both have the dimensions of the inputs, with size 1 everywhere but along dimension 1.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, inputs: Tensor) -> Scaling:
        """The scaling that gives `inputs` mean 0 and (population) standard deviation 1 along dimension 1.

        Args:
            inputs: floating point, (N, features) or (N, channels, ...).
        """
        others = [dim for dim in range(inputs.ndim) if dim != 1]
        variance, mean = torch.var_mean(inputs, dim=others, correction=0, keepdim=True)
        # Told by its extremes: rounding can leave a constant feature a variance just above 0.
        constant = inputs.amax(others, keepdim=True) == inputs.amin(others, keepdim=True)
        return cls(mean, variance.sqrt().masked_fill(constant, 1))

    def apply_(self, inputs: Tensor) -> Tensor:
        """Scale `inputs` in place, since a second copy of a set of images can be more than memory holds."""
        return inputs.sub_(self.mean).div_(self.std)
