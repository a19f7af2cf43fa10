"""A convolution in the place of another one and of layers around it, which knows its own geometry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError

_MOST = 1000
"""The largest kernel, stride, padding or dilation of a side."""


class MergedConv2d(nn.Conv2d):
    """A two-dimensional convolution with a bias, whose stride, padding and dilation are part of its state.

    So a network whose layers were merged is saved, and loaded into a freshly built one.

    Args:
        conv: the convolution in whose place it stands: type, device and mode of padding are its.
        shape: of the weight, (outputs, inputs, height, width).
        geometry: (6,) int64, stride, padding and dilation along the height and along the width.

    Raises:
        ModelError: for a convolution in groups, another number of dimensions, or numbers out of range.

    Attributes:
        geometry: as given.
    """

    geometry: Tensor

    def __init__(self, conv: nn.Conv2d, shape: Sequence[int], geometry: Tensor) -> None:
        if conv.groups != 1:
            raise ModelError(f"a convolution in {conv.groups} groups is not merged")
        if len(shape) != 4 or not all(size > 0 for size in shape) or max(shape[2:]) > _MOST:
            raise ModelError(f"a merged convolution has a weight of 4 dimensions, not {tuple(shape)}")
        least = torch.tensor([1, 1, 0, 0, 1, 1])
        if (
            geometry.shape != least.shape
            or geometry.dtype != torch.int64
            or bool(((geometry.cpu() < least) | (geometry.cpu() > _MOST)).any())
        ):
            raise ModelError("the stride, padding and dilation of a merged convolution are out of range")
        down, across, top, left, far, wide = geometry.tolist()
        super().__init__(
            shape[1],
            shape[0],
            (shape[2], shape[3]),
            stride=(down, across),
            padding=(top, left),
            dilation=(far, wide),
            padding_mode=conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        self.register_buffer("geometry", geometry.to(conv.weight.device))
        if conv.weight.is_contiguous(memory_format=torch.channels_last):
            self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)
        self.train(conv.training).requires_grad_(conv.weight.requires_grad)
