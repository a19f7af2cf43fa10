"""A convolution with some of its filter shapes only, as a product of smaller matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ColumnConv2d(nn.Module):
    """A two-dimensional convolution of those columns of its matrix that are left (im2col).

    Only what they read is copied out of the input, and multiplied with (out_channels, columns) weights.
    Chellapilla, Puri, Simard 2006; for pruned columns Lebedev, Lempitsky 2016, arXiv 1506.02515.

    Args:
        conv: whose settings and values are taken.
        columns: (columns,) positions in its weights of one filter, flattened, of those that stay.

    Attributes:
        weight: (out_channels, columns).
        bias: (out_channels,), or None.
        columns: as given.
    """

    columns: Tensor

    def __init__(self, conv: nn.Conv2d, columns: Tensor) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding = tuple(conv._reversed_padding_repeated_twice)  # as `F.pad` takes it
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        columns = columns.to(conv.weight.device)
        left = conv.weight.detach().flatten(1).index_select(1, columns)
        self.weight = nn.Parameter(left, requires_grad=conv.weight.requires_grad)
        self.bias = conv.bias
        self.register_buffer("columns", columns)
        self.training = conv.training

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, height, width) for (N, in_channels, height, width), or both without N."""
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if any(self.padding):
            x = F.pad(x, self.padding, mode=self.padding_mode)
        for dim in (0, 1):
            reach = (self.kernel_size[dim] - 1) * self.dilation[dim] + 1
            x = x.unfold(2 + dim, reach, self.stride[dim])
        patches = x[..., :: self.dilation[0], :: self.dilation[1]]  # (N, in, height, width, kernel)
        channel, row, column = torch.unravel_index(self.columns, (self.in_channels, *self.kernel_size))
        read = patches[:, channel, :, :, row, column]  # (columns, N, height, width)
        found = self.weight @ read.flatten(1)
        if self.bias is not None:
            found = found + self.bias[:, None]
        return found.view(-1, *read.shape[1:]).transpose(0, 1)

    def extra_repr(self) -> str:
        """Its sizes."""
        whole = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        return f"{self.in_channels}, {self.out_channels}, columns={len(self.columns)} of {whole}"
