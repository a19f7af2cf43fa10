"""Every layer as one form: groups of rows of weights, each multiplied with the same rows of inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.targets import unwrap

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def inputs_first(layer: nn.Module) -> bool:
    """Whether it is the `Conv1D` of transformers: a linear layer whose weight is (inputs, outputs)."""
    return any(kind.__name__ == "Conv1D" for kind in type(layer).__mro__)


def row_layers(model: nn.Module, names: Iterable[str], *, transposed: bool = False) -> dict[str, nn.Module]:
    """The layer that owns each weight, by the weight's full name.

    Args:
        model: the network.
        names: of weights.
        transposed: whether transposed convolutions will do, too.

    Raises:
        ModelError: naming a weight that is not that of a linear or convolution layer, or is an embedding's
            as well: its inputs say nothing of what such a weight does.
    """
    kinds = LAYERS + TRANSPOSED if transposed else LAYERS
    inner = unwrap(model)
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for place, module in inner.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((place, module))
    found = {}
    for name in names:
        layers = owners[id(inner.get_parameter(name))]
        for place, module in layers:
            if not (isinstance(module, kinds) or inputs_first(module)) or not name.endswith("weight"):
                raise ModelError(
                    f"{name} is a parameter of {place!r}, a {type(module).__name__}: only weights of linear "
                    "and convolution layers can be judged by their inputs; name it in `ignore`"
                )
        if len(layers) > 1:
            raise ModelError(
                f"{name} is the weight of {len(layers)} layers, which have inputs of their own: "
                "name it in `ignore`"
            )
        found[name] = layers[0][1]
    return found


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
    if isinstance(layer, TRANSPOSED):
        return _turned(weight, groups).flatten(2)
    return weight.reshape(groups, len(weight) // groups, -1)


def from_rows(rows: Tensor, layer: nn.Module) -> Tensor:
    """The inverse of `rows_of`: (groups, rows, columns) in the shape of the layer's weight."""
    if inputs_first(layer):
        return rows[0].mT
    if isinstance(layer, TRANSPOSED):
        inputs = layer.in_channels // layer.groups
        return _turned(rows.reshape(-1, inputs, *layer.kernel_size), layer.groups).flatten(0, 1)
    return rows.reshape(cast(Tensor, layer.weight).shape)


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """(groups, rows, columns): what each output of a layer is computed from, padding included.

    With the rows of weights `rows_of(weight, layer)`, the outputs but for the bias are `patches @ rows.mT`.

    Args:
        layer: a linear or convolution layer, also a transposed one, or the `Conv1D` of transformers.
        x: (n, ...) its inputs; those of one example without the dimension n are taken, too.
    """
    if not isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        return x.reshape(1, -1, x.shape[-1])
    dims = len(layer.kernel_size)
    return windows(layer, x).flatten(2 + dims).flatten(1, 1 + dims)


def channels(layer: nn.Module, x: Tensor) -> Tensor:
    """(1, rows, inputs): what a layer is given, a row for each position, padding left out.

    Args:
        layer: as in `patches`.
        x: (n, ...) its inputs.
    """
    if isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        x = x.movedim(-1 - len(layer.kernel_size), -1)
    return x.reshape(1, -1, x.shape[-1])


def windows(layer: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """(groups, n, positions..., channels, kernel...): the same for a convolution, in the memory of its input.

    Only padding copies the input, and zeros in between, by which a transposed convolution is one of stride 1
    with its kernel turned round.
    """
    dims = len(layer.kernel_size)
    if x.dim() == dims + 1:
        x = x.unsqueeze(0)
    if isinstance(layer, TRANSPOSED):
        x, steps = _apart(layer, x), (1,) * dims
    else:
        steps = layer.stride
        sides = list(layer._reversed_padding_repeated_twice)
        if any(sides):
            x = F.pad(x, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    for dim, (size, step, apart) in enumerate(
        zip(layer.kernel_size, steps, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(dim, apart * (size - 1) + 1, step)[..., ::apart]
    # (n, groups, channels, positions..., kernel...) -> the channels beside the kernel
    return torch.unflatten(x, 1, (layer.groups, -1)).movedim(1, 0).movedim(2, 2 + dims)


def output_rows(layer: nn.Module, outputs: Tensor) -> Tensor:
    """(groups, n, positions..., rows): what each row of weights makes; (1, n, rows) for a linear layer.

    The outputs of a convolution are in the order of `windows`.

    Args:
        layer: a linear or convolution layer, or the `Conv1D` of transformers.
        outputs: its outputs; those of one example without the dimension n are taken, too.
    """
    if not isinstance(layer, CONVOLUTIONS):
        return outputs.reshape(1, -1, outputs.shape[-1])
    if outputs.dim() == len(layer.kernel_size) + 1:
        outputs = outputs.unsqueeze(0)
    return torch.unflatten(outputs, 1, (layer.groups, -1)).movedim(1, 0).movedim(2, -1)


def _apart(layer: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """The inputs of a transposed convolution with `stride - 1` zeros between neighbours, and its padding."""
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], layer.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    spread[tuple(slice(None, None, step) for step in (1, 1, *layer.stride))] = x
    sides: list[int] = []
    for size, apart, padding, more in zip(
        layer.kernel_size,
        layer.dilation,
        cast(tuple[int, ...], layer.padding),
        layer.output_padding,
        strict=True,
    ):
        before = apart * (size - 1) - padding
        sides = [before, before + more, *sides]
    return F.pad(spread, sides)


def _turned(weight: Tensor, groups: int) -> Tensor:
    """(groups, b, a, kernel...) of a weight (groups x a, b, kernel...), the kernel turned round."""
    found = torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2)
    return found.flip(tuple(range(3, found.dim())))
