"""Maxout: a layer that hands on the largest of several linear pieces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.errors import InputError


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
