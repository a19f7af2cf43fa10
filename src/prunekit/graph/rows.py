"""Every layer as one form: groups of rows of weights, each multiplied with the same rows of inputs."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def inputs_first(layer: nn.Module) -> bool:
    """Whether it is the `Conv1D` of transformers: a linear layer whose weight is (inputs, outputs)."""
    return any(kind.__name__ == "Conv1D" for kind in type(layer).__mro__)


def has_rows(layer: nn.Module) -> bool:
    """Whether each output is a row of weights times the layer's inputs, or patches of them."""
    return isinstance(layer, LAYERS) or inputs_first(layer)


def groups_of(layer: nn.Module) -> int:
    """The groups of a convolution; 1 for linear layers."""
    return cast(int, getattr(layer, "groups", 1))


def rows_of(weight: Tensor, layer: nn.Module) -> Tensor:
    """(groups, rows, columns): a row for each output, a column for each input that it is computed from.

    Args:
        weight: of the shape of the layer's weight: the weight itself, its mask, its scores.
        layer: a linear or convolution layer, or the `Conv1D` of transformers.

    Returns:
        A view where the memory allows one; the columns are in the order of those of `patches`.
    """
    if inputs_first(layer):
        return weight.mT.unsqueeze(0)
    groups = groups_of(layer)
    return weight.reshape(groups, len(weight) // groups, -1)


def from_rows(rows: Tensor, layer: nn.Module) -> Tensor:
    """The inverse of `rows_of`: (groups, rows, columns) in the shape of the layer's weight."""
    if inputs_first(layer):
        return rows[0].mT
    return rows.reshape(cast(Tensor, layer.weight).shape)


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """(groups, rows, columns): what each output of a layer is computed from, padding included.

    With the rows of weights `rows_of(weight, layer)`, the outputs but for the bias are `patches @ rows.mT`.

    Args:
        layer: a linear or convolution layer, or the `Conv1D` of transformers.
        x: (n, ...) its inputs; those of one example without the dimension n are taken, too.
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return x.reshape(1, -1, x.shape[-1])
    dims = len(layer.kernel_size)
    return windows(layer, x).flatten(2 + dims).flatten(1, 1 + dims)


def windows(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """(groups, n, positions..., channels, kernel...): the same for a convolution, in the memory of its input.

    Only padding copies the input.
    """
    dims = len(layer.kernel_size)
    if x.dim() == dims + 1:
        x = x.unsqueeze(0)
    sides = list(layer._reversed_padding_repeated_twice)
    if any(sides):
        x = F.pad(x, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    for dim, (size, step, apart) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(dim, apart * (size - 1) + 1, step)[..., ::apart]
    # (n, groups, channels, positions..., kernel...) -> the channels beside the kernel
    return torch.unflatten(x, 1, (layer.groups, -1)).movedim(1, 0).movedim(2, 2 + dims)
