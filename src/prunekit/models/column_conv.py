"""A convolution with some of its filter shapes only, as a product of smaller matrices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ColumnConv2d(nn.Module):
    """A two-dimensional convolution of those columns of its matrix that are left (im2col).

    Only what they read is copied out of the input, and multiplied with (out_channels, columns) weights.
    Where they are the same rectangle of every channel that is left, they are a smaller kernel, and what runs
    is a convolution with that. Chellapilla, Puri, Simard 2006; for pruned columns Lebedev, Lempitsky 2016,
    arXiv 1506.02515.

    Args:
        conv: whose settings and values are taken.
        columns: (columns,) positions in its weights of one filter, flattened, of those that stay.

    Attributes:
        weight: (out_channels, columns).
        bias: (out_channels,), or None.
        columns: as given.
        rectangle: the first and last row and the first and last column of the smaller kernel; None where the
            columns that are left are no such kernel.
    """

    columns: Tensor
    rectangle: tuple[int, int, int, int] | None

    def __init__(self, conv: nn.Conv2d, columns: Tensor) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding = tuple(conv._reversed_padding_repeated_twice)  # as `F.pad` takes it
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        self.rectangle = self._rectangle_of(columns)
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
        if self.rectangle is not None:
            return self._smaller(x, *self.rectangle)
        x = self._padded(x, self.padding)
        for dim in (0, 1):
            reach = (self.kernel_size[dim] - 1) * self.dilation[dim] + 1
            x = x.unfold(2 + dim, reach, self.stride[dim])
        patches = x[..., :: self.dilation[0], :: self.dilation[1]]  # (N, in, height, width, kernel)
        channel, row, column = self._places(self.columns)
        read = patches[:, channel, :, :, row, column]  # (columns, N, height, width)
        found = self.weight @ read.flatten(1)
        if self.bias is not None:
            found = found + self.bias[:, None]
        return found.view(-1, *read.shape[1:]).transpose(0, 1)

    def _smaller(self, x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
        """The convolution with the rectangle as its kernel, on what the whole kernel would read there."""
        height, width = bottom - top + 1, right - left + 1
        channels = self._places(self.columns[:: height * width])[0]  # columns are channel by channel
        if len(channels) < self.in_channels:
            x = x.index_select(1, channels)
        (tall, wide), (down, across) = self.kernel_size, self.dilation
        unread = (left * across, (wide - 1 - right) * across, top * down, (tall - 1 - bottom) * down)
        if self.padding_mode == "constant":
            x = self._padded(x, tuple(p - u for p, u in zip(self.padding, unread, strict=True)))
        else:
            x = self._padded(x, self.padding)
            x = x[..., unread[2] : x.shape[-2] - unread[3], unread[0] : x.shape[-1] - unread[1]]
        kernel = self.weight.view(-1, len(channels), height, width)
        return F.conv2d(x, kernel, self.bias, self.stride, 0, self.dilation)

    def _padded(self, x: Tensor, padding: tuple[int, ...]) -> Tensor:
        """With so much around it; less than nothing cuts off."""
        return F.pad(x, padding, mode=self.padding_mode) if any(padding) else x

    def _places(self, columns: Tensor) -> tuple[Tensor, ...]:
        """The channel, row and column in the kernel of each."""
        return torch.unravel_index(columns, (self.in_channels, *self.kernel_size))

    def _rectangle_of(self, columns: Tensor) -> tuple[int, int, int, int] | None:
        channels, rows, places = (torch.unique(each) for each in self._places(columns))
        ends = (int(rows[0]), int(rows[-1]), int(places[0]), int(places[-1]))
        height, width = ends[1] - ends[0] + 1, ends[3] - ends[2] + 1
        return ends if len(channels) * height * width == len(columns) else None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if not self.columns.is_meta:
            self.rectangle = self._rectangle_of(self.columns)

    def extra_repr(self) -> str:
        """Its sizes."""
        whole = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        return f"{self.in_channels}, {self.out_channels}, columns={len(self.columns)} of {whole}"
