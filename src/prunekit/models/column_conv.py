"""Convolutions as products of matrices (im2col), and one with some of its filter shapes only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kernel(NamedTuple):
    """A part of the kernel of a convolution.

    Attributes:
        channels: of the input that it reads.
        rows, columns: of the whole kernel that it has.
    """

    channels: list[int]
    rows: range
    columns: range

    @property
    def size(self) -> int:
        """The weights of one filter."""
        return len(self.channels) * len(self.rows) * len(self.columns)


class Im2col(nn.Module):
    """What a two-dimensional convolution that multiplies matrices reads of its input.

    Chellapilla, Puri, Simard 2006, High performance convolutional neural networks for document processing.

    Args:
        conv: whose settings are taken; of one group.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding = tuple(conv._reversed_padding_repeated_twice)  # as `F.pad` takes it
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        self.training = conv.training

    def patches(self, x: Tensor) -> Tensor:
        """A view, (N, in_channels, height, width, kernel rows, kernel columns), of the padded input."""
        x = self.padded(x, self.padding)
        for dim in (0, 1):
            reach = (self.kernel_size[dim] - 1) * self.dilation[dim] + 1
            x = x.unfold(2 + dim, reach, self.stride[dim])
        return x[..., :: self.dilation[0], :: self.dilation[1]]

    def padded(self, x: Tensor, padding: tuple[int, ...]) -> Tensor:
        """With so much around it; less than nothing cuts off."""
        return F.pad(x, padding, mode=self.padding_mode) if any(padding) else x


class ColumnConv2d(Im2col):
    """A two-dimensional convolution of those columns of its matrix that are left (im2col).

    Only what they read is copied out of the input, and multiplied with (out_channels, columns) weights.
    Where they fill at least half of the smallest kernel that holds them, which may have fewer channels, rows
    and columns, a convolution with that kernel takes the place of copying. It is faster from about a third on
    for batches, but from three quarters on for single images (`benchmarks/filter_shapes.py`). Chellapilla,
    Puri, Simard 2006; for pruned columns Lebedev, Lempitsky 2016, arXiv 1506.02515.

    Args:
        conv: whose settings and values are taken.
        columns: (columns,) positions in its weights of one filter, flattened, of those that stay.

    Attributes:
        weight: (out_channels, columns).
        bias: (out_channels,), or None.
        columns: as given.
        kernel: the smallest that holds the columns; None where they fill less than half of it.
    """

    columns: Tensor
    kernel: Kernel | None

    def __init__(self, conv: nn.Conv2d, columns: Tensor) -> None:
        super().__init__(conv)
        self.kernel = self._kernel_of(columns)
        self._channels_last = conv.weight.stride(1) == 1 and conv.weight[0, 0].numel() > 1
        columns = columns.to(conv.weight.device)
        left = conv.weight.detach().flatten(1).index_select(1, columns)
        self.weight = nn.Parameter(left, requires_grad=conv.weight.requires_grad)
        self.bias = conv.bias
        self.register_buffer("columns", columns)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, height, width) for (N, in_channels, height, width), or both without N."""
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self.kernel is not None:
            return self._smaller(x, self.kernel)
        channel, row, column = self._places(self.columns)
        read = self.patches(x)[:, channel, :, :, row, column]  # (columns, N, height, width)
        found = self.weight @ read.flatten(1)
        if self.bias is not None:
            found = found + self.bias[:, None]
        return found.view(-1, *read.shape[1:]).transpose(0, 1)

    def _smaller(self, x: Tensor, kernel: Kernel) -> Tensor:
        """The convolution with a smaller kernel, on what the whole one would read there."""
        (tall, wide), (down, across) = self.kernel_size, self.dilation
        unread = (
            kernel.columns.start * across,
            (wide - kernel.columns.stop) * across,
            kernel.rows.start * down,
            (tall - kernel.rows.stop) * down,
        )
        if len(kernel.channels) < self.in_channels:
            x = x[:, kernel.channels]
        if self.padding_mode == "constant":
            x = self.padded(x, tuple(p - u for p, u in zip(self.padding, unread, strict=True)))
        else:
            x = self.padded(x, self.padding)
            x = x[..., unread[2] : x.shape[-2] - unread[3], unread[0] : x.shape[-1] - unread[1]]
        filled = self._filled(kernel)
        if self._channels_last:  # what is made follows the weight; of one channel `contiguous` does nothing
            filled = filled.clone(memory_format=torch.channels_last)
        return F.conv2d(x, filled, self.bias, self.stride, 0, self.dilation)

    def _filled(self, kernel: Kernel) -> Tensor:
        """The weights as a kernel, with zeros where columns are gone."""
        shape = (len(kernel.channels), len(kernel.rows), len(kernel.columns))
        if kernel.size == len(self.columns):
            return self.weight.view(-1, *shape)
        whole = self.weight.new_zeros(self.out_channels, self.in_channels, *self.kernel_size)
        whole = whole.flatten(1).index_copy(1, self.columns, self.weight).view_as(whole)
        if len(kernel.channels) < self.in_channels:
            whole = whole[:, kernel.channels]
        return whole[..., kernel.rows.start : kernel.rows.stop, kernel.columns.start : kernel.columns.stop]

    def _places(self, columns: Tensor) -> tuple[Tensor, ...]:
        """The channel, row and column in the kernel of each."""
        return torch.unravel_index(columns, (self.in_channels, *self.kernel_size))

    def _kernel_of(self, columns: Tensor) -> Kernel | None:
        channels, rows, places = (torch.unique(each).tolist() for each in self._places(columns))
        found = Kernel(channels, range(rows[0], rows[-1] + 1), range(places[0], places[-1] + 1))
        return found if 2 * len(columns) >= found.size else None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if not self.columns.is_meta:
            self.kernel = self._kernel_of(self.columns)

    def extra_repr(self) -> str:
        """Its sizes."""
        whole = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        return f"{self.in_channels}, {self.out_channels}, columns={len(self.columns)} of {whole}"
